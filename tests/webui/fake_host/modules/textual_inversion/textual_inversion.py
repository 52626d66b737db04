"""The host's embeddings in small: read from folders of safetensors files, found in a prompt by their tokens."""

import os

from safetensors.torch import load_file

from modules import hashes, shared


class Embedding:
    def __init__(self, vec, name, step=None):
        self.vec, self.name, self.step = vec, name, step
        self.shape, self.vectors = None, 0
        self.filename = self.hash = self.shorthash = None


def create_embedding_from_data(data, name, filename="unknown embedding file", filepath=None):
    both = isinstance(data, dict) and "clip_l" in data and "clip_g" in data
    if not both and len(data) != 1:
        raise AssertionError("embedding file has multiple terms in it")
    vec = dict(data) if both else next(iter(data.values()))
    made = Embedding(vec, name)
    made.shape = sum(part.shape[-1] for part in vec.values()) if both else vec.shape[-1]
    made.vectors = len(vec["clip_g"] if both else vec)
    if filepath:
        made.filename, made.hash = filepath, hashes.sha256(filepath, f"textual_inversion/{name}")
        made.shorthash = made.hash[:12]
    return made


class EmbeddingDatabase:
    def __init__(self):
        self.ids_lookup, self.word_embeddings, self.skipped_embeddings, self.embedding_dirs = {}, {}, {}, {}
        self.expected_shape = -1

    def add_embedding_dir(self, path):
        self.embedding_dirs[path] = None

    def register_embedding(self, embedding, model):
        return self.register_embedding_by_name(embedding, model, embedding.name)

    def register_embedding_by_name(self, embedding, model, name):
        ids = model.cond_stage_model.tokenize([name])[0]
        others = [entry for entry in self.ids_lookup.get(ids[0], []) if entry[1].name != name]
        if embedding is None:
            self.word_embeddings.pop(name, None)
        else:
            self.word_embeddings[name] = embedding
            others.append((ids, embedding))
        self.ids_lookup[ids[0]] = sorted(others, key=lambda entry: -len(entry[0]))
        if not others:
            del self.ids_lookup[ids[0]]
        return embedding

    def load_textual_inversion_embeddings(self, force_reload=False):
        stamps = {path: os.path.getmtime(path) for path in self.embedding_dirs if os.path.isdir(path)}
        if not force_reload and all(self.embedding_dirs[path] == stamp for path, stamp in stamps.items()):
            return
        self.ids_lookup.clear()
        self.word_embeddings.clear()
        self.skipped_embeddings.clear()
        self.embedding_dirs.update(stamps)
        self.expected_shape = shared.sd_model().cond_stage_model.width
        for path in stamps:
            for file in sorted(os.listdir(path)):
                if file.endswith(".safetensors"):
                    self._load(os.path.join(path, file), file.removesuffix(".safetensors"))

    def _load(self, path, name):
        try:
            embedding = create_embedding_from_data(load_file(path), name, filepath=path)
        except Exception as error:  # the host takes any
            print(f"*** Error loading embedding {name}: {error}")
            return
        if self.expected_shape in (-1, embedding.shape):
            self.register_embedding(embedding, shared.sd_model())
        else:
            self.skipped_embeddings[name] = embedding

    def find_embedding_at_position(self, tokens, offset):
        for ids, embedding in self.ids_lookup.get(tokens[offset], ()):
            if tokens[offset : offset + len(ids)] == ids:
                return embedding, len(ids)
        return None, None
