"""Tiny causal language models with random weights and a small trained tokenizer, saved to a folder."""

from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from fed_distill import seeds

TEXTS = [
    "Query: red shoe Product: running shoe in red Relevance: exact",
    "Query: kettle Product: tea pot, blue Relevance: substitute",
    "Query: phone Product: phone case Relevance: complement irrelevant not relevant",
    "N/A coffee other green lamp ultra pro maxi mini",
    *[": exact, substitute, complement, irrelevant" * 20],
]
SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
ARCHITECTURES = ("gpt2", "qwen2", "qwen3")


def save_causal(folder: Path, architecture: str, begin: str = "") -> str:
    """Write a model of ``architecture`` whose tokenizer puts ``begin``, if any, before every text."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    special = ["<|end|>", *([begin] if begin else [])]
    tokenizer.train_from_iterator(
        TEXTS, trainers.BpeTrainer(vocab_size=360, special_tokens=special, initial_alphabet=alphabet)
    )
    if begin:
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{begin} $A <|end|>",
            special_tokens=[(begin, tokenizer.token_to_id(begin)), ("<|end|>", tokenizer.token_to_id("<|end|>"))],
        )
    size = tokenizer.get_vocab_size()
    # large weights, so that random probabilities differ clearly
    with seeds.scope(0, "causal", architecture):
        if architecture == "gpt2":
            config = GPT2Config(
                vocab_size=size, n_positions=96, n_embd=32, n_layer=2, n_head=4, bos_token_id=0, eos_token_id=0
            )
            network = GPT2LMHeadModel(config)
        else:
            shared = {"vocab_size": size, "max_position_embeddings": 96, "num_key_value_heads": 2, **SIZES}
            shared |= {"bos_token_id": 0, "eos_token_id": 0}
            network = (
                Qwen2ForCausalLM(Qwen2Config(**shared, tie_word_embeddings=True))
                if architecture == "qwen2"
                else Qwen3ForCausalLM(Qwen3Config(**shared, head_dim=8))
            )
        with torch.no_grad():
            for value in network.parameters():
                if value.dim() > 1:
                    value.mul_(8.0)
    network.save_pretrained(folder)
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|end|>").save_pretrained(folder)
    return str(folder)
