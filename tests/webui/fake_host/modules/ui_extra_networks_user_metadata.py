"""The editor of remarks, without what draws it."""

import os


class UserMetadataEditor:
    def __init__(self, ui, tabname, page):
        self.ui, self.tabname, self.page = ui, tabname, page

    def get_card_html(self, name):
        return ""

    def relative_path(self, path):
        return os.path.basename(path)
