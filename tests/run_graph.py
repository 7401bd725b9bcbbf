"""Running an exported graph in an engine."""


def predict(model, tiles, folder, kind):
    """Logits of tiles by an ONNX model (bytes) in an engine of a kind; the file lies in the folder."""
    path = folder / "model.onnx"
    path.write_bytes(model)
    engine = kind(path)
    try:
        return engine.predict(tiles)
    finally:
        engine.close()
