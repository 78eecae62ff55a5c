"""What some formats must be told, by their names: to write an adapter of a Llama, and to read their file in tests/data."""

Q, V, Q1 = (f"model.layers.{place}_proj" for place in ("0.self_attn.q", "0.self_attn.v", "1.self_attn.q"))
TO_WRITE = {
    "diffusers": {"component": "unet"},
    "gguf": {"architecture": "qwen2"},
    "keras": {"map": f"8={Q},10={V},19={Q1}"},
}
TO_READ = {
    "loralib": {
        "alpha": 16,
        "enable_lora": "c_attn=TFT,one=FTF",
        "conv": "conv=3,grouped=3/2",
        "ignore": "q.bias,c_attn.bias,one.bias,conv.conv.bias,grouped.conv.bias",
    }
}
