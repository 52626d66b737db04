"""What ends a sampling."""


class InterruptedException(BaseException):
    pass
