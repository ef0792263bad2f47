from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from reft_math.errors import UserError
from reft_math.regression.grid import Grid, evenly_spaced, make_grid, number_texts
from reft_math.regression.scores import grid_log_probs

TinyModel = Callable[..., PreTrainedModel]
TokenizerOfKind = Callable[[str], PreTrainedTokenizerBase]

VOCABULARY = 1300
TEXTS = ("The score is 2.5 of 12. Answer:", "Answer:", "of 3 Answer:")
SLIDING = {"sliding_window": 6}  # shorter than the prompts
MODELS: list[tuple[str, dict[str, Any]]] = [
    ("Llama", {}),
    ("Qwen2", {}),
    ("Gemma", {}),
    ("Mistral", SLIDING),
    ("Qwen2", {**SLIDING, "use_sliding_window": True, "max_window_layers": 1}),
    ("Gemma3", {**SLIDING, "layer_types": ["sliding_attention", "full_attention", "sliding_attention"]}),
]


def pad_left(prompts: Sequence[Sequence[int]], extra: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    length = max(map(len, prompts)) + extra
    input_ids = torch.tensor([[0] * (length - len(prompt)) + list(prompt) for prompt in prompts])
    attention_mask = torch.tensor([[0] * (length - len(prompt)) + [1] * len(prompt) for prompt in prompts])
    return input_ids, attention_mask


def brute_force(model: PreTrainedModel, prompts: Sequence[Sequence[int]], grid: Grid) -> torch.Tensor:
    """One forward pass for every prompt and every string, without padding, cache or mask."""
    rows = []
    for prompt in prompts:
        for string in grid.token_ids:
            logits = model(input_ids=torch.tensor([[*prompt, *string[:-1]]]), use_cache=False).logits[0]
            steps = logits.log_softmax(dim=-1)[len(prompt) - 1 :]
            rows.append(steps.gather(1, torch.tensor(string)[:, None]).sum())
    return torch.stack(rows).view(len(prompts), len(grid))


def read_by(model: PreTrainedModel, run: Callable[[], object]) -> list[torch.Tensor]:
    """What the model's embedding is given meanwhile, a tensor of tokens a call."""
    calls: list[torch.Tensor] = []
    handle = model.get_input_embeddings().register_forward_hook(lambda module, args, output: calls.append(args[0]))
    run()
    handle.remove()
    return calls


@pytest.fixture
def prompts(tokenizer_of_kind: TokenizerOfKind) -> list[list[int]]:
    tokenizer = tokenizer_of_kind("three digits a token")
    return [tokenizer.encode(text, add_special_tokens=False) for text in TEXTS]


@pytest.fixture
def grid(tokenizer_of_kind: TokenizerOfKind) -> Grid:
    """Signs, one to three digits, decimals, strings of several lengths, one that begins others ("-7" and "-7.25")."""
    texts = {-7: "-7", -7.25: "-7.25", 0: "0.00", 0.5: "0.50", 12: "12.00", 123.5: "123.50", 5: "fifty-five"}
    return make_grid(tokenizer_of_kind("three digits a token"), texts, "Answer:")


@pytest.fixture
def digits(tokenizer_of_kind: TokenizerOfKind) -> Grid:
    return make_grid(tokenizer_of_kind("three digits a token"), number_texts(range(1, 6)), "", leading_space=False)


# --- the same as string by string ---------------------------------------------------------------------------------


@pytest.mark.parametrize(("family", "changes"), MODELS)
@torch.no_grad()
def test_scores_are_those_of_one_pass_for_every_string(
    tiny_model: TinyModel, prompts: list[list[int]], grid: Grid, family: str, changes: dict[str, Any]
) -> None:
    model = tiny_model(family, vocab_size=VOCABULARY, attn_implementation="sdpa", **changes).double()
    scores = grid_log_probs(model, *pad_left(prompts), grid)
    torch.testing.assert_close(scores, brute_force(model, prompts, grid), rtol=0, atol=1e-9)


@pytest.mark.parametrize(("family", "changes"), [*MODELS, ("Gemma2", SLIDING)])
@torch.no_grad()
def test_scores_hold_for_eager_attention(
    tiny_model: TinyModel, prompts: list[list[int]], grid: Grid, family: str, changes: dict[str, Any]
) -> None:
    """To float32's precision: eager attention takes its softmax in float32 whatever the model's dtype."""
    model = tiny_model(family, vocab_size=VOCABULARY, attn_implementation="eager", **changes).double()
    scores = grid_log_probs(model, *pad_left(prompts), grid)
    torch.testing.assert_close(scores, brute_force(model, prompts, grid), rtol=0, atol=1e-5)


@pytest.mark.parametrize("kind", ["one byte a token", "one digit a token", "space in the token"])
@pytest.mark.parametrize("ends", [False, True])
@torch.no_grad()
def test_scores_hold_for_every_kind_of_tokenizer(
    tiny_model: TinyModel, tokenizer_of_kind: TokenizerOfKind, kind: str, ends: bool
) -> None:
    tokenizer = tokenizer_of_kind(kind)
    terminator = tokenizer.eos_token_id if ends else None
    grid = make_grid(tokenizer, number_texts(evenly_spaced(-1, 11, 1.5)), "Answer:", terminator=terminator)
    prompts = [tokenizer.encode(text, add_special_tokens=False) for text in TEXTS]
    model = tiny_model("Llama", vocab_size=VOCABULARY).double()
    scores = grid_log_probs(model, *pad_left(prompts), grid)
    torch.testing.assert_close(scores, brute_force(model, prompts, grid), rtol=0, atol=1e-9)


@torch.no_grad()
def test_scores_of_single_tokens_are_read_off_the_prompts_last_position(
    tiny_model: TinyModel, prompts: list[list[int]], digits: Grid
) -> None:
    model = tiny_model("Llama", vocab_size=VOCABULARY).double()
    scores = grid_log_probs(model, *pad_left(prompts), digits)
    torch.testing.assert_close(scores, brute_force(model, prompts, digits), rtol=0, atol=1e-9)


def test_gradients_are_those_of_one_pass_for_every_string(
    tiny_model: TinyModel, prompts: list[list[int]], grid: Grid
) -> None:
    model = tiny_model("Llama", vocab_size=VOCABULARY).double()
    weights = torch.arange(1.0, len(grid) + 1, dtype=torch.float64)
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    scored = torch.autograd.grad((grid_log_probs(model, *pad_left(prompts), grid) * weights).sum(), parameters)
    expected = torch.autograd.grad((brute_force(model, prompts, grid) * weights).sum(), parameters)
    for ours, theirs in zip(scored, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4)  # norms have float32 inside


def test_gradient_checkpointing_changes_nothing(tiny_model: TinyModel, prompts: list[list[int]], grid: Grid) -> None:
    """It forbids a cache in training, which scores must therefore do without."""
    model = tiny_model("Llama", vocab_size=VOCABULARY).train()
    weight = model.model.layers[0].mlp.up_proj.weight
    (plain,) = torch.autograd.grad(grid_log_probs(model, *pad_left(prompts), grid).sum(), weight)
    model.activation_checkpointing_enable({"use_reentrant": False})
    (checkpointed,) = torch.autograd.grad(grid_log_probs(model, *pad_left(prompts), grid).sum(), weight)
    torch.testing.assert_close(checkpointed, plain, rtol=0, atol=1e-5)
    assert plain.abs().max() > 1e-3


@torch.no_grad()
def test_padding_and_company_change_no_rows_scores(tiny_model: TinyModel, prompts: list[list[int]], grid: Grid) -> None:
    model = tiny_model("Mistral", vocab_size=VOCABULARY, **SLIDING).double()
    together = grid_log_probs(model, *pad_left(prompts, extra=5), grid)
    alone = torch.cat([grid_log_probs(model, *pad_left([prompt]), grid) for prompt in prompts])
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-9)


@torch.no_grad()
def test_a_terminator_takes_the_longer_numbers_out_of_the_shorter_ones(
    tiny_model: TinyModel, tokenizer_of_kind: TokenizerOfKind
) -> None:
    """Every "15" begins with "1": open-ended, its probability is counted within the other's; ended, it is not."""
    tokenizer = tokenizer_of_kind("one digit a token")
    prompt = pad_left([tokenizer.encode("Answer: ", add_special_tokens=False)])
    model = tiny_model("Llama", vocab_size=VOCABULARY).double()
    model.lm_head.weight.zero_()  # all tokens alike, so that probabilities are known
    one = -torch.tensor(VOCABULARY).double().log()
    texts = number_texts([1, 15])
    scores = {
        end: grid_log_probs(model, *prompt, make_grid(tokenizer, texts, "Answer: ", terminator=end))
        for end in (None, tokenizer.eos_token_id)
    }
    torch.testing.assert_close(scores[None], torch.stack([one, 2 * one])[None])
    torch.testing.assert_close(scores[tokenizer.eos_token_id], torch.stack([2 * one, 3 * one])[None])


# --- what it costs ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["three digits a token", "one digit a token", "one byte a token"])
@torch.no_grad()
def test_a_grid_of_tenths_reads_a_fifth_of_brute_forces_tokens_at_most(
    tiny_model: TinyModel, tokenizer_of_kind: TokenizerOfKind, kind: str
) -> None:
    """Prompts of a few tokens are the worst case: the ratio falls to 1/51 as they get longer."""
    tokenizer = tokenizer_of_kind(kind)
    grid = make_grid(tokenizer, number_texts(evenly_spaced(0.0, 5.0, 0.1)), "Answer:")
    prompts = [tokenizer.encode(text, add_special_tokens=False) for text in TEXTS]
    model = tiny_model("Llama", vocab_size=VOCABULARY)
    input_ids, attention_mask = pad_left(prompts)
    ours = read_by(model, lambda: grid_log_probs(model, input_ids, attention_mask, grid))
    theirs = read_by(model, lambda: brute_force(model, prompts, grid))
    assert len(theirs) == 51 * len(prompts)
    num_read = sum(call.numel() for call in ours)
    assert num_read == len(prompts) * (input_ids.shape[1] + grid.trie.num_inner)
    assert num_read <= sum(call.numel() for call in theirs) / 5


@torch.no_grad()
def test_single_tokens_cost_the_prompt_and_nothing_more(
    tiny_model: TinyModel, prompts: list[list[int]], digits: Grid
) -> None:
    model = tiny_model("Llama", vocab_size=VOCABULARY)
    input_ids, attention_mask = pad_left(prompts)
    (call,) = read_by(model, lambda: grid_log_probs(model, input_ids, attention_mask, digits))
    assert torch.equal(call, input_ids)


@torch.no_grad()
def test_the_prompt_comes_first_and_the_shared_tokens_behind_it(
    tiny_model: TinyModel, prompts: list[list[int]], grid: Grid
) -> None:
    """What interventions that act on the prompt or on the solution alone rely on."""
    model = tiny_model("Llama", vocab_size=VOCABULARY)
    input_ids, attention_mask = pad_left(prompts)
    (call,) = read_by(model, lambda: grid_log_probs(model, input_ids, attention_mask, grid))
    prompt, nodes = call.split([input_ids.shape[1], grid.trie.num_inner], dim=1)
    assert torch.equal(prompt, input_ids)
    assert all(torch.equal(row, grid.trie.tokens[: grid.trie.num_inner]) for row in nodes)


# --- precision and refusals ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@torch.no_grad()
def test_a_bfloat16_model_gives_float32_scores_near_its_float32_ones(
    tiny_model: TinyModel, prompts: list[list[int]], grid: Grid, attention: str
) -> None:
    model = tiny_model("Llama", vocab_size=VOCABULARY, attn_implementation=attention, initializer_range=0.05)
    exact = grid_log_probs(model, *pad_left(prompts), grid)
    scores = grid_log_probs(model.bfloat16(), *pad_left(prompts), grid)
    assert exact.dtype == scores.dtype == torch.float32
    torch.testing.assert_close(scores, exact, rtol=0, atol=0.05)


@pytest.mark.parametrize(("family", "changes"), [("Llama", {}), ("Mistral", SLIDING), ("Gemma2", SLIDING)])
@torch.no_grad()
def test_every_row_of_the_mask_has_something_to_attend_to(
    tiny_model: TinyModel, prompts: list[list[int]], grid: Grid, family: str, changes: dict[str, Any]
) -> None:
    """Padding's too: some attention kernels make NaN of a row that is masked all over, and NaN spreads."""
    model = tiny_model(family, vocab_size=VOCABULARY, **changes)
    masks: list[Any] = []
    model.register_forward_pre_hook(
        lambda module, args, kwargs: masks.append(kwargs["attention_mask"]), with_kwargs=True
    )
    grid_log_probs(model, *pad_left(prompts, extra=3), grid)
    for mask in masks[0].values() if isinstance(masks[0], dict) else masks:
        assert (mask == 0).any(dim=-1).all()


@pytest.mark.parametrize("mask", [[[1, 1, 0]], [[0, 0, 0]]])
def test_prompts_padded_on_the_right_or_empty_are_refused(
    tiny_model: TinyModel, digits: Grid, mask: list[list[int]]
) -> None:
    model = tiny_model("Llama", vocab_size=VOCABULARY)
    with pytest.raises(UserError, match="padded on the left"):
        grid_log_probs(model, torch.tensor([[5, 6, 0]]), torch.tensor(mask), digits)


def test_tokens_without_an_embedding_are_refused(tiny_model: TinyModel, digits: Grid) -> None:
    """A tokenizer with added numbers in front of a model that was not resized."""
    with pytest.raises(UserError, match=r"it has 10, .* up to token \d+; resize"):
        grid_log_probs(tiny_model("Llama", vocab_size=10), *pad_left([[5, 6]]), digits)


@pytest.mark.parametrize(
    ("family", "setting"),
    [
        ("Llama", {"_attn_implementation_internal": "flash_attention_2"}),
        ("Llama", {"is_causal": False}),
        ("Qwen2", {"layer_types": ["full_attention", "linear_attention", "full_attention"]}),
    ],
)
def test_a_model_whose_mask_cannot_be_set_is_refused_for_strings_of_several_tokens(
    tiny_model: TinyModel, prompts: list[list[int]], grid: Grid, family: str, setting: dict[str, Any]
) -> None:
    model = tiny_model(family, vocab_size=VOCABULARY)
    for name, value in setting.items():
        setattr(model.config, name, value)
    with pytest.raises(UserError, match="take a grid of single tokens"):
        grid_log_probs(model, *pad_left(prompts), grid)
