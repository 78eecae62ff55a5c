"""What some formats must be told before they write an adapter of a model that looks like Llama, by name of format."""

Q, V, Q1 = (f"model.layers.{place}_proj" for place in ("0.self_attn.q", "0.self_attn.v", "1.self_attn.q"))
TO_WRITE = {
    "diffusers": {"component": "unet"},
    "gguf": {"architecture": "qwen2"},
    "keras": {"map": f"8={Q},10={V},19={Q1}"},
}
