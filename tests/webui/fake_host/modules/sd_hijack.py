"""What the host has put on the model: pictures that tile at their edges, embeddings that prompts may name."""

from modules.textual_inversion.textual_inversion import EmbeddingDatabase


class ModelHijack:
    circular_enabled = False

    def __init__(self):
        self.embedding_db = EmbeddingDatabase()

    def apply_circular(self, enable):
        self.circular_enabled = enable


model_hijack = ModelHijack()
