"""Who uses the model now; the others wait."""

import threading

queue_lock = threading.Lock()
