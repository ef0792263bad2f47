from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from reft_math.errors import UserError
from reft_math.regression.grid import Grid, evenly_spaced, make_grid, number_texts
from reft_math.regression.scores import NO_TOKEN, grid_log_probs, read, string_log_probs

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


def fill_right(strings: Sequence[Sequence[int]]) -> torch.Tensor:
    longest = max(map(len, strings))
    return torch.tensor([[*string, *[NO_TOKEN] * (longest - len(string))] for string in strings])


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
    # Its name since transformers 5.23, and before.
    name = "activation" if hasattr(model, "activation_checkpointing_enable") else "gradient"
    getattr(model, f"{name}_checkpointing_enable")({"use_reentrant": False})
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


# --- one string a row -------------------------------------------------------------------------------------------------

CHOSEN = [2, 0, 5]  # a number for each prompt: "0.00", "-7" and "123.50", of five, two and four tokens


@pytest.mark.parametrize(("family", "changes"), MODELS)
@torch.no_grad()
def test_a_strings_score_is_its_column_of_the_grid(
    tiny_model: TinyModel, prompts: list[list[int]], grid: Grid, family: str, changes: dict[str, Any]
) -> None:
    model = tiny_model(family, vocab_size=VOCABULARY, attn_implementation="sdpa", **changes).double()
    chosen = [grid.token_ids[number] for number in CHOSEN]
    assert len(set(map(len, chosen))) == len(chosen)
    scores = string_log_probs(model, *pad_left(prompts, extra=2), fill_right(chosen))
    expected = brute_force(model, prompts, grid)[[0, 1, 2], CHOSEN]
    torch.testing.assert_close(scores, expected, rtol=0, atol=1e-9)
    columns = grid_log_probs(model, *pad_left(prompts), grid)[[0, 1, 2], CHOSEN]
    torch.testing.assert_close(scores, columns, rtol=0, atol=1e-9)


def test_a_strings_gradient_is_that_of_its_own_pass(
    tiny_model: TinyModel, prompts: list[list[int]], grid: Grid
) -> None:
    model = tiny_model("Llama", vocab_size=VOCABULARY).double()
    strings, weights = fill_right([grid.token_ids[number] for number in CHOSEN]), torch.tensor([1.0, 2.0, 3.0]).double()
    parameters = list(model.parameters())
    scored = torch.autograd.grad(string_log_probs(model, *pad_left(prompts), strings) @ weights, parameters)
    expected = torch.autograd.grad(brute_force(model, prompts, grid)[[0, 1, 2], CHOSEN] @ weights, parameters)
    for ours, theirs in zip(scored, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4)  # norms have float32 inside


@pytest.mark.parametrize("bidirectional", [False, True])
@torch.no_grad()
def test_later_tokens_of_a_string_are_not_seen_before_they_come(
    tiny_model: TinyModel, prompts: list[list[int]], bidirectional: bool
) -> None:
    """Two strings that share their first two tokens, after one prompt: what predicts the third has seen no other."""
    model = tiny_model("Llama", vocab_size=VOCABULARY).double()
    logits: list[torch.Tensor] = []
    model.register_forward_hook(lambda module, args, output: logits.append(output.logits))
    strings = torch.tensor([[11, 12, 13, 14, 15], [11, 12, 23, 24, NO_TOKEN]])
    string_log_probs(model, *pad_left([prompts[0]] * 2), strings, bidirectional)
    first, second = logits[0]
    torch.testing.assert_close(first[:3], second[:3], rtol=0, atol=1e-12)
    assert (first[3:4] - second[3:4]).abs().max() > 1e-3


@torch.no_grad()
def test_a_string_costs_its_own_tokens_but_the_last(tiny_model: TinyModel, prompts: list[list[int]]) -> None:
    model = tiny_model("Llama", vocab_size=VOCABULARY)
    input_ids, attention_mask = pad_left(prompts[:1])
    strings = torch.tensor([[11, 12, 13]])
    (call,) = read_by(model, lambda: string_log_probs(model, input_ids, attention_mask, strings))
    assert torch.equal(call, torch.cat([input_ids, strings[:, :2]], dim=1))


# --- what else is read ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("numbers", [None, "single tokens", "strings"])
@pytest.mark.parametrize(("family", "changes"), MODELS)
@torch.no_grad()
def test_logits_and_hidden_states_are_those_of_a_plain_pass(
    tiny_model: TinyModel,
    prompts: list[list[int]],
    grid: Grid,
    digits: Grid,
    family: str,
    changes: dict[str, Any],
    numbers: str | None,
) -> None:
    """Whatever is scored beside them: numbers stand behind the prompt, and the prompt does not see them."""
    model = tiny_model(family, vocab_size=VOCABULARY, **changes).double()
    scored = {None: None, "single tokens": digits, "strings": grid}[numbers]
    input_ids, attention_mask = pad_left(prompts, extra=1)
    reading = read(model, input_ids, attention_mask, scored, hidden=True)
    assert reading.hidden is not None
    assert reading.hidden.shape == (*input_ids.shape, 32)
    for row, prompt in enumerate(prompts):
        plain = model(input_ids=torch.tensor([prompt]), output_hidden_states=True, use_cache=False)
        torch.testing.assert_close(reading.logits[row], plain.logits[0, -1], rtol=0, atol=1e-9)
        hidden = reading.hidden[row, -len(prompt) :]
        torch.testing.assert_close(hidden, plain.hidden_states[-1][0], rtol=0, atol=1e-9)
    torch.testing.assert_close(model.lm_head(reading.hidden[:, -1]), reading.logits, rtol=0, atol=1e-9)


@torch.no_grad()
def test_what_was_not_asked_for_is_not_there(tiny_model: TinyModel, prompts: list[list[int]]) -> None:
    reading = read(tiny_model("Llama", vocab_size=VOCABULARY), *pad_left(prompts))
    assert reading.hidden is None
    assert reading.log_probs is None


# --- prompts read in both directions ----------------------------------------------------------------------------------


def both_ways(
    model: PreTrainedModel, prompt: Sequence[int], string: Sequence[int], window: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """A string's score and the prompt's hidden states by one pass, its mask set entry by entry."""
    tokens = [*prompt, *string[:-1]]
    mask = torch.full((1, 1, len(tokens), len(tokens)), torch.finfo(model.dtype).min, dtype=model.dtype)
    for query in range(len(tokens)):
        for key in range(len(tokens)):
            within_the_prompt = query < len(prompt) and key < len(prompt)
            if (within_the_prompt or key <= query) and abs(query - key) < window:
                mask[0, 0, query, key] = 0
    outputs = model(input_ids=torch.tensor([tokens]), attention_mask=mask, use_cache=False, output_hidden_states=True)
    steps = outputs.logits[0, len(prompt) - 1 :].log_softmax(dim=-1)
    return steps.gather(1, torch.tensor(string)[:, None]).sum(), outputs.hidden_states[-1][0, : len(prompt)]


@pytest.mark.parametrize(("attention", "tolerance"), [("sdpa", 1e-9), ("eager", 1e-5)])
@pytest.mark.parametrize(("family", "changes", "window"), [("Llama", {}, 1000), ("Mistral", SLIDING, 6)])
@torch.no_grad()
def test_bidirectional_scores_are_those_of_a_mask_set_by_hand(
    tiny_model: TinyModel,
    prompts: list[list[int]],
    grid: Grid,
    digits: Grid,
    family: str,
    changes: dict[str, Any],
    window: int,
    attention: str,
    tolerance: float,
) -> None:
    """Of a grid of strings, of single tokens, and of a string a row."""
    model = tiny_model(family, vocab_size=VOCABULARY, attn_implementation=attention, **changes).double()
    inputs = pad_left(prompts, extra=2)
    for numbers in (grid, digits):
        reading = read(model, *inputs, numbers, bidirectional=True, hidden=True)
        assert reading.hidden is not None
        assert reading.log_probs is not None
        for row, prompt in enumerate(prompts):
            found = [both_ways(model, prompt, string, window) for string in numbers.token_ids]
            expected = torch.stack([score for score, _ in found])
            torch.testing.assert_close(reading.log_probs[row], expected, rtol=0, atol=tolerance)
            hidden = reading.hidden[row, -len(prompt) :]
            torch.testing.assert_close(hidden, found[0][1], rtol=0, atol=tolerance)
    strings = [grid.token_ids[number] for number in CHOSEN]
    scores = string_log_probs(model, *inputs, fill_right(strings), bidirectional=True)
    expected = torch.stack([both_ways(model, *pair, window)[0] for pair in zip(prompts, strings, strict=True)])
    torch.testing.assert_close(scores, expected, rtol=0, atol=tolerance)


@pytest.mark.parametrize("bidirectional", [False, True])
@torch.no_grad()
def test_the_first_token_sees_the_last_where_prompts_are_bidirectional(
    tiny_model: TinyModel, prompts: list[list[int]], bidirectional: bool
) -> None:
    model = tiny_model("Llama", vocab_size=VOCABULARY).double()
    first_states = []
    for last in (20, 30):
        reading = read(model, *pad_left([[*prompts[0], last]]), bidirectional=bidirectional, hidden=True)
        assert reading.hidden is not None
        first_states.append(reading.hidden[0, 0])
    assert ((first_states[0] - first_states[1]).abs().max() > 1e-3) == bidirectional


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


def test_strings_are_held_to_the_same_rules(tiny_model: TinyModel, prompts: list[list[int]], digits: Grid) -> None:
    model = tiny_model("Llama", vocab_size=VOCABULARY)
    with pytest.raises(UserError, match="padded on the left"):
        string_log_probs(model, torch.tensor([[5, 6, 0]]), torch.tensor([[1, 1, 0]]), torch.tensor([[7]]))
    with pytest.raises(UserError, match=r"it has 1300, .* up to token 1300; resize"):
        string_log_probs(model, *pad_left(prompts), torch.tensor([[7, NO_TOKEN], [7, 1300], [7, 8]]))
    model.config._attn_implementation_internal = "flash_attention_2"
    with pytest.raises(UserError, match="causal prompts"):
        string_log_probs(model, *pad_left(prompts), torch.tensor([[7], [7], [7]]), bidirectional=True)
    with pytest.raises(UserError, match="causal prompts"):
        read(model, *pad_left(prompts), digits, bidirectional=True)
