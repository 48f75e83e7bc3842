"""Captions in; texts, samples, embeddings and the FAISS index out. `build` is the way in."""
