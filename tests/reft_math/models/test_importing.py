from __future__ import annotations

import contextlib
import io
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from warnings import catch_warnings, simplefilter

import pyreft
import pytest
import torch
from ranks import World
from torch import nn
from torch.nn import functional as F
from transformers import PreTrainedModel

from interventions import PrefixReftConfig, PrefixReftModel, get_prefix_reft_model, import_checkpoint, read_checkpoint
from reft_math.errors import UserError

TOKENS = torch.arange(3, 11)[None]
Formula = Callable[[torch.Tensor], torch.Tensor]

LOAD_WITH_STOCK_CLASSES = """
import sys, torch, pyreft, pyvene, interventions
from transformers import AutoModelForCausalLM
folder = sys.argv[1]
tokens = torch.arange(3, 11)[None]
for load in (pyvene.IntervenableModel.load, pyreft.ReftModel.load):
    stock = load(folder + "/adapter", AutoModelForCausalLM.from_pretrained(folder + "/base").eval())
    for intervention in stock.interventions.values():
        intervention.eval()
    with torch.no_grad():
        _, output = stock({"input_ids": tokens}, unit_locations={"base": list(range(8))})
    assert torch.equal(output.logits, torch.load(folder + "/logits.pt")), load
"""


def hooked_logits(model: PreTrainedModel, formulas: dict[str, Formula]) -> torch.Tensor:
    """The model's logits with each module's output replaced by a formula of it."""
    handles = [
        model.get_submodule(path).register_forward_hook(lambda module, args, output, formula=formula: formula(output))
        for path, formula in formulas.items()
    ]
    with torch.no_grad():
        logits: torch.Tensor = model(TOKENS).logits
    for handle in handles:
        handle.remove()
    return logits


def save_with_pyreft(
    folder: Path, model: PreTrainedModel, kind: type[nn.Module], components: dict[int, str], **options: object
) -> dict[int, nn.Module]:
    """A folder as pyreft's users make it, of random interventions; returns these by layer."""
    torch.manual_seed(1)
    made = {layer: kind(embed_dim=32, low_rank_dimension=3, **options).eval() for layer in components}
    representations = [
        {"layer": layer, "component": components[layer], "low_rank_dimension": 3, "intervention": intervention}
        for layer, intervention in made.items()
    ]
    with contextlib.redirect_stdout(io.StringIO()):
        pyreft.get_reft_model(model, pyreft.ReftConfig(representations=representations)).save(str(folder))
    return made


BLOCKS = {2: "block_output", 0: "block_output"}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("act_fn", ["linear", "relu"])
@pytest.mark.parametrize(
    ("kind", "name"), [(pyreft.LoreftIntervention, "loreft"), (pyreft.DireftIntervention, "direft")]
)
def test_pyrefts_interventions_act_by_their_formulas(
    tiny_model: Callable[..., PreTrainedModel],
    tmp_path: Path,
    kind: type[nn.Module],
    name: str,
    act_fn: str,
    dtype: torch.dtype,
) -> None:
    model = tiny_model()
    made = save_with_pyreft(tmp_path, model, kind, BLOCKS, act_fn=act_fn, dropout=0.1, dtype=dtype)
    reft_model = import_checkpoint(tmp_path, model, act_fn=act_fn, dropout=0.1)

    def formula(intervention: nn.Module) -> Formula:
        weight, bias = (tensor.detach().float() for tensor in intervention.learned_source.parameters())
        rotation = intervention.rotate_layer.weight.detach()
        nonlinear = {"linear": lambda x: x, "relu": F.relu}[act_fn]

        def apply(h: torch.Tensor) -> torch.Tensor:
            kept = h @ rotation if name == "loreft" else 0
            return h + (nonlinear(h @ weight.T + bias) - kept) @ rotation.T

        return apply

    expected = hooked_logits(model, {f"model.layers.{layer}": formula(made[layer]) for layer in made})
    torch.testing.assert_close(reft_model(TOKENS).logits, expected, rtol=1e-4, atol=1e-4)
    assert (expected - model(TOKENS).logits).abs().max() > 0.1
    config = reft_model.prefix_config
    assert (config.intervention, config.site, config.layers, config.rank) == (name, "block", (0, 2), 3)
    assert (config.act_fn, config.dropout) == (act_fn, 0.1)


@pytest.mark.slow
def test_what_was_imported_is_saved_whole_and_loads_with_stock_classes_too(
    tiny_model: Callable[..., PreTrainedModel], tmp_path: Path, world: Callable[..., World]
) -> None:
    model = tiny_model()
    save_with_pyreft(tmp_path / "theirs", model, pyreft.DireftIntervention, BLOCKS, act_fn="relu", dropout=0.1)
    reft_model = import_checkpoint(tmp_path / "theirs", model, act_fn="relu", dropout=0.1)
    with torch.no_grad():
        logits = reft_model(TOKENS).logits
    torch.save(logits, tmp_path / "logits.pt")
    reft_model.save_pretrained(tmp_path / "adapter")
    reft_model.unload().save_pretrained(tmp_path / "base")
    loaded = PrefixReftModel.from_pretrained(tmp_path / "adapter", tiny_model())
    assert loaded.prefix_config == reft_model.prefix_config
    assert torch.equal(loaded(TOKENS).logits, logits)
    assert not torch.equal(loaded.train()(TOKENS).logits, logits), "dropout acts in training"
    (tmp_path / "stock.py").write_text(LOAD_WITH_STOCK_CLASSES)
    run = world(1, f"{tmp_path}/stock.py {tmp_path}")
    assert run.wait() == 0, run.errors()


@pytest.mark.parametrize(
    ("component", "site"),
    [
        ("model.layers[1].output", "block"),
        ("model.layers[1].mlp.output", "ffn_down"),
        ("mlp_output", "ffn_down"),
        ("attention_output", "attn_o"),
        ("model.layers[1].self_attn.o_proj.output", "attn_o"),
    ],
)
def test_pyvenes_names_of_a_place_are_known(
    tiny_model: Callable[..., PreTrainedModel], tmp_path: Path, component: str, site: str
) -> None:
    model = tiny_model()
    made = save_with_pyreft(tmp_path, model, pyreft.LoreftIntervention, {1: component}, dtype=torch.float32)
    with torch.no_grad():
        _, expected = pyreft.get_reft_model(
            model, pyreft.ReftConfig(representations=[{"layer": 1, "component": component, "intervention": made[1]}])
        )({"input_ids": TOKENS}, unit_locations={"base": list(range(8))})
    reft_model = import_checkpoint(tmp_path, model, act_fn="linear")
    assert (reft_model.prefix_config.site, reft_model.prefix_config.layers) == (site, (1,))
    torch.testing.assert_close(reft_model(TOKENS).logits, expected.logits, rtol=1e-4, atol=1e-4)


def test_older_folders_have_dots_in_file_names_and_hub_folders_a_readme(
    tiny_model: Callable[..., PreTrainedModel], tmp_path: Path
) -> None:
    save_with_pyreft(tmp_path, tiny_model(), pyreft.LoreftIntervention, {1: "model.layers[1].output"})
    (tmp_path / "README.md").touch()
    (file,) = tmp_path.glob("*.bin")
    file.rename(tmp_path / "intkey_comp.model.layers[1].output.unit.pos.nunit.1#0.bin")
    assert import_checkpoint(tmp_path, tiny_model(), act_fn="linear").prefix_config.layers == (1,)


def edit_config(folder: Path, **changes: object) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def edit_places(folder: Path, *rows: list[object]) -> None:
    lists = {"intervention_types": LOREFT, "intervention_dimensions": 32, "intervention_constant_sources": True}
    edit_config(folder, representations=rows, **{name: [value] * len(rows) for name, value in lists.items()})


def edit_tensors(file: Path, **changes: torch.Tensor) -> None:
    torch.save({**torch.load(file, weights_only=True), **changes}, file)


def a_file(folder: Path) -> Path:
    return min(folder.glob("*.bin"))


LOREFT = "<class 'pyreft.interventions.LoreftIntervention'>"
PLACE = [0, "block_output", "pos", 1, 3, *[None] * 9]


def of_class(folder: Path, name: str) -> None:
    edit_config(folder, intervention_types=[f"<class '{name}'>"])


def as_easysteers(folder: Path, *left_out: str) -> None:
    """Its config by the name of ours, places by their fields' names, no mode, and a file of any name."""
    config = json.loads((folder / "config.json").read_text())
    place = {"layer": 1, "component": "block_output", "unit": "pos", "max_number_of_units": 1}
    kept = {name: config[name] for name in ("intervention_types",) if name not in left_out}
    (folder / "reft_config.json").write_text(json.dumps({"representations": [place], **kept}))
    (folder / "config.json").unlink()
    a_file(folder).rename(folder / "intervention.bin")


def rename_tensors(file: Path, **names: str) -> None:
    tensors = torch.load(file, weights_only=True)
    torch.save({names.get(name, name): tensor for name, tensor in tensors.items()}, file)


EASYSTEERS = "easysteer.reft.pyreft.reft.algorithms.loreft.LoreftIntervention"
TRAINING = {"act_fn": "linear", "prompt_template": "<|im_start|>%s\n", "apply": {"prompt_positions": [-1]}}


@pytest.mark.parametrize(
    ("change", "act_fn", "notes"),
    [
        (
            lambda folder: edit_config(
                folder, bos_token_id=1, eos_token_id=[2, 3], pad_token_id=0, use_cache=False, dtype="bfloat16"
            ),
            "linear",
            [],
        ),
        (
            lambda folder: of_class(folder, "pyreft.reft.interventions.LoreftIntervention"),
            "linear",
            ["class pyreft.reft.interventions.LoreftIntervention: taken for loreft by its tensors, and not imported"],
        ),
        (lambda folder: of_class(folder, EASYSTEERS), "linear", [f"class {EASYSTEERS}: taken for loreft"]),
        (lambda folder: of_class(folder, "antigravity.LoreftIntervention"), "linear", ["class antigravity.Lor"]),
        (as_easysteers, "linear", []),
        (lambda folder: as_easysteers(folder, "intervention_types"), "linear", ["class not named: taken for loreft"]),
        (
            lambda folder: rename_tensors(a_file(folder), weight="learned_source.weight", bias="learned_source.bias"),
            "linear",
            [],
        ),
        (lambda folder: edit_config(folder, easysteer_training=TRAINING), None, ["EasySteer's training, not taken"]),
        (lambda folder: edit_config(folder, act_fn="linear"), "linear", []),
    ],
)
def test_what_forks_and_recent_trainers_write_differently_is_the_same_adapter(
    tiny_model: Callable[..., PreTrainedModel],
    tmp_path: Path,
    change: Callable[[Path], object],
    act_fn: str | None,
    notes: list[str],
) -> None:
    model = tiny_model()
    save_with_pyreft(tmp_path, model, pyreft.LoreftIntervention, {1: "block_output"})
    plain = import_checkpoint(tmp_path, model, act_fn="linear")
    with torch.no_grad():
        expected = plain(TOKENS).logits
    plain.unload()
    change(tmp_path)
    checkpoint = read_checkpoint(tmp_path, act_fn=act_fn)
    assert torch.equal(checkpoint.put_on(model)(TOKENS).logits, expected)
    assert len(checkpoint.notes) == len(notes)
    assert all(note.startswith(start) for note, start in zip(checkpoint.notes, notes, strict=True))
    assert "antigravity" not in sys.modules


@pytest.mark.parametrize(
    "config", [{}, {"intervention": "bias"}, {"intervention": "loreft"}, {"intervention": "direft"}]
)
def test_our_own_folders_without_our_own_files_are_adapters_too(
    tiny_model: Callable[..., PreTrainedModel], tmp_path: Path, config: dict[str, str]
) -> None:
    """A stock save of ours, of any kind and none of whose tensors are pyreft's LoReFT's."""
    model = tiny_model()
    ours = get_prefix_reft_model(model, PrefixReftConfig(**{"site": "block", **config}))  # type: ignore[arg-type]
    with torch.no_grad():
        for vector in (*ours.biases().values(), *ours.scales().values()):
            vector.add_(torch.randn_like(vector) * 0.3)
        expected = ours(TOKENS).logits
    ours.save_pretrained(tmp_path)
    ours.unload()
    for name in ("reft_config.json", "reft_model.safetensors"):
        (tmp_path / name).unlink()
    with pytest.raises(UserError, match=r"it is another project's: train/import_checkpoint\.py"):
        PrefixReftModel.from_pretrained(tmp_path, model)
    subspace = config.get("intervention") in ("loreft", "direft")
    checkpoint = read_checkpoint(tmp_path, act_fn="linear" if subspace else None)
    torch.testing.assert_close(checkpoint.put_on(model)(TOKENS).logits, expected, rtol=1e-5, atol=1e-5)
    assert (checkpoint.config.gate, checkpoint.notes) == ("prompt", ())


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda folder: edit_config(folder, act_fn="relu"), "must be the one of training, relu .*; got linear"),
        (lambda folder: edit_config(folder, easysteer_training=[1]), "is no config of pyreft's"),
        (lambda folder: edit_config(folder, intervention_types=["<class 'antigravity.fly'>"]), r"antigravity\.fly"),
        (lambda folder: edit_config(folder, intervention_types=[]), "it names none"),
        (lambda folder: edit_config(folder, mode="serial"), "in parallel.*serial"),
        (lambda folder: edit_config(folder, representations=3), "is no config of pyreft's"),
        (lambda folder: edit_places(folder, PLACE), "does not account for"),
        (lambda folder: edit_places(folder, PLACE, PLACE), "one a layer; there is no intkey_layer_0"),
        (lambda folder: edit_places(folder, [0, "mlp_input", *PLACE[2:]]), "got mlp_input by pos"),
        (lambda folder: edit_places(folder, [*PLACE[:2], "h.pos", *PLACE[3:]]), r"by h\.pos"),
        (lambda folder: edit_places(folder, [*PLACE[:9], "tied", *PLACE[10:]]), "intervention_link"),
        (lambda folder: edit_places(folder, [*PLACE[:8], 1, *PLACE[9:]]), "by pos, with group_key"),
        (lambda folder: edit_places(folder, [*PLACE[:11], 1, None, None]), "with source_repres"),
        (
            lambda folder: edit_places(folder, [*PLACE[:4], 99, *PLACE[5:]]),
            r"\(99, 32\).*\(3, 32\)",
        ),
        (lambda folder: edit_config(folder, new_key=1), "pyvene's keys only.*it has new_key"),
        (lambda folder: edit_config(folder, intervention_dimensions=[7]), r"widths \[7\]"),
        (lambda folder: edit_config(folder, intervention_dimensions=[7, 7]), r"\(3, 7\).*\(3, 32\)"),
        (lambda folder: edit_config(folder, intervention_types=[LOREFT]), "1 classes"),
        (lambda folder: edit_config(folder, intervention_constant_sources=[True, False]), r"sources \[True, False\]"),
        (lambda folder: (folder / "config.json").write_text("[]"), "is no config of pyreft's"),
        (
            lambda folder: edit_places(folder, [0, f"model.layers[{'9' * 5000}].output", *PLACE[2:]]),
            "interventions can be imported at",
        ),
        (lambda folder: (folder / "adapter_model.safetensors").touch(), r"holds adapter_model\.safetensors, which"),
        (
            lambda folder: a_file(folder).with_name(a_file(folder).stem.replace("_", ".") + ".bin").touch(),
            r"one file for each intervention; intkey_.* and intkey\..* are one's",
        ),
        (lambda folder: a_file(folder).unlink(), "there is no intkey_layer_0_comp_block_output"),
        (lambda folder: a_file(folder).write_bytes(b"no tensors"), "must hold tensors and nothing else"),
        (lambda folder: a_file(folder).write_bytes(b"."), "cannot be read so"),
        (lambda folder: torch.save([1], a_file(folder)), "must hold a dictionary of tensors"),
        (lambda folder: torch.save({}, folder / "pytorch_model.bin"), r"holds pytorch_model\.bin, which"),
        (lambda folder: edit_tensors(a_file(folder), extra=torch.ones(1)), r"extra must be absent; it is \(1,\)"),
        (lambda folder: edit_tensors(a_file(folder), bias=torch.ones(4)), "must be"),
        (lambda folder: edit_tensors(a_file(folder), rotate_layer=torch.ones(32, 3)), "R must be orthonormal"),
        (
            lambda folder: (
                edit_places(folder, *([layer, *PLACE[1:4], *PLACE[5:], None] for layer in BLOCKS)),
                edit_tensors(
                    a_file(folder), weight=torch.ones(2, 32), bias=torch.ones(2), rotate_layer=torch.eye(32)[:, :2]
                ),
            ),
            r"one width and one rank.*\(2, 32\), \(3, 32\)",
        ),
        (
            lambda folder: (folder / "reft_config.json").write_text('{"intervention": "red"}'),
            "is an adapter of this project already",
        ),
        (
            lambda folder: (folder / "reft_config.json").write_text('{"d_model": 32, "rank": 4}'),
            r"reft_config\.json must be of this project .* or of EasySteer .*; it holds d_model, rank",
        ),
    ],
)
def test_what_is_wrong_in_pyrefts_folder_is_refused(
    tiny_model: Callable[..., PreTrainedModel], tmp_path: Path, spoil: Callable[[Path], object], message: str
) -> None:
    model = tiny_model()
    save_with_pyreft(tmp_path, model, pyreft.LoreftIntervention, BLOCKS)
    spoil(tmp_path)
    with pytest.raises(UserError, match=message):
        import_checkpoint(tmp_path, model, act_fn="linear")
    assert "antigravity" not in sys.modules


def cast(file: Path, dtype: torch.dtype) -> None:
    torch.save({name: tensor.to(dtype) for name, tensor in torch.load(file, weights_only=True).items()}, file)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda file: cast(file, torch.bfloat16), "R must be orthonormal"),
        (lambda file: cast(file, torch.int64), "must be a dense tensor of floating numbers; it is torch.int64"),
        (lambda file: edit_tensors(file, embed_dim=torch.tensor(31)), "must be the width 32; they are not"),
    ],
)
def test_what_is_wrong_in_pyrefts_direft_is_refused(
    tiny_model: Callable[..., PreTrainedModel], tmp_path: Path, spoil: Callable[[Path], object], message: str
) -> None:
    save_with_pyreft(tmp_path, tiny_model(), pyreft.DireftIntervention, BLOCKS)
    spoil(a_file(tmp_path))
    with pytest.raises(UserError, match=message):
        import_checkpoint(tmp_path, tiny_model(), act_fn="linear")


def test_a_direft_of_parameters_in_any_dtype_is_imported(
    tiny_model: Callable[..., PreTrainedModel], tmp_path: Path
) -> None:
    save_with_pyreft(tmp_path, tiny_model(), pyreft.DireftIntervention, BLOCKS)
    for file in tmp_path.glob("*.bin"):
        cast(file, torch.float64)
    reft_model = import_checkpoint(tmp_path, tiny_model(), act_fn="linear")
    assert {parameter.dtype for parameter in reft_model.interventions.parameters()} == {torch.float32}


def test_another_model_is_refused(tiny_model: Callable[..., PreTrainedModel], tmp_path: Path) -> None:
    save_with_pyreft(tmp_path, tiny_model(), pyreft.LoreftIntervention, BLOCKS)
    with pytest.raises(UserError, match=r"block of width 32 .*the model's is 64"):
        import_checkpoint(tmp_path, tiny_model(hidden_size=64), act_fn="linear")
    with pytest.raises(UserError, match=r"layers must lie in 0-1.*got 2"):
        import_checkpoint(tmp_path, tiny_model(num_hidden_layers=2), act_fn="linear")


# --- BREP -----------------------------------------------------------------------------------------------------------


def brep_tensors(module: str, width: int, layers: int = 3) -> dict[str, torch.Tensor]:
    torch.manual_seed(1)
    return {
        f"model.layers.{layer}.{module}.delta_vector.activation_{name}": (
            centre + torch.randn(1, width) * 0.3
        ).bfloat16()
        for layer in range(layers)
        for name, centre in (("scaling", 1.0), ("bias", 0.0))
    }


@pytest.mark.parametrize(
    ("module", "site", "width", "left_out"),
    [
        ("mlp.up_proj", "ffn_up", 48, None),
        ("mlp.down_proj", "ffn_down", 32, None),
        ("self_attn.q_proj", "attn_q", 48, None),
        ("self_attn.k_proj", "attn_k", 24, None),
        ("self_attn.v_proj", "attn_v", 24, None),
        ("self_attn.o_proj", "attn_o", 32, None),
        ("mlp.up_proj", "ffn_up", 48, "scaling"),
        ("self_attn.o_proj", "attn_o", 32, "scaling"),
        ("mlp.up_proj", "ffn_up", 48, "bias"),
    ],
)
def test_breps_vectors_act_by_their_formula(
    tiny_model: Callable[..., PreTrainedModel], tmp_path: Path, module: str, site: str, width: int, left_out: str | None
) -> None:
    """Of whatever the file holds: scales and biases, biases alone (s = 1), scales alone (b = 0)."""
    tensors, model = brep_tensors(module, width), tiny_model()
    tensors = {name: tensor for name, tensor in tensors.items() if not name.endswith(f"_{left_out}")}
    torch.save(tensors, tmp_path / "delta_vector.pth")

    def formula(layer: int) -> Formula:
        prefix = f"model.layers.{layer}.{module}.delta_vector.activation_"
        scale, bias = tensors.get(f"{prefix}scaling", torch.ones(1)), tensors.get(f"{prefix}bias", torch.zeros(1))
        return lambda h: scale.float() * h + bias.float()

    expected = hooked_logits(model, {f"model.layers.{layer}.{module}": formula(layer) for layer in range(3)})
    for path in (tmp_path, tmp_path / "delta_vector.pth"):
        reft_model = import_checkpoint(path, model, gate="tokens:9")
        torch.testing.assert_close(reft_model(TOKENS).logits, expected, rtol=1e-5, atol=1e-5)
        config = reft_model.prefix_config
        kind = "bias" if left_out == "scaling" else "red"
        assert (config.intervention, config.site, config.layers) == (kind, site, (0, 1, 2))
        assert (config.width, config.gate) == (width, "tokens:9")


UP, BIAS = "model.layers.1.mlp.up_proj.delta_vector.", "activation_bias"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({f"{UP}activation_ln.weight": torch.ones(48)}, r"only; got .*activation_ln\.weight"),
        ({"model.layers.1.mlp.gate_proj.delta_vector.activation_bias": torch.ones(1, 48)}, "only; got .*gate_proj"),
        (
            {"model.layers.1.delta_vector.activation_bias": torch.ones(1, 32)},
            r"names a layer and no module \(op_position layer.*what was edited is missing",
        ),
        (dict.fromkeys(brep_tensors("mlp.up_proj", 48)), "it holds none, as BREP's code saves .*nothing was trained"),
        ({f"{UP}{BIAS}": torch.ones(1, 47)}, r"activation_bias must be \(1, 48\); it is \(1, 47\)"),
        ({f"{UP}{BIAS}": torch.ones(1, 48).to_sparse()}, "activation_bias must be a dense tensor.*sparse_coo"),
        ({f"{UP}{BIAS}": torch.ones(1, 48, device="meta")}, "must be a dense tensor.*on meta"),
        ({f"{UP}{BIAS}": torch.ones(1, 48, dtype=torch.complex64)}, "of floating numbers; it is torch.complex64"),
        ({f"{UP}{BIAS}": torch.full((1, 48), torch.nan)}, "activation_bias must be finite"),
        ({f"{UP}{BIAS}": torch.full((1, 48), 1e300, dtype=torch.float64)}, "must be finite in float32"),
        (
            {f"{UP}{BIAS}": torch.ones(1).expand(10**6, 10**6)},
            r"must be stored whole; its shape is \(1000000, 1000000\)",
        ),
        ({f"model.layers.{'9' * 5000}.mlp.up_proj.{BIAS}": torch.ones(1, 48)}, "must hold scales and biases of"),
        ({f"{UP}{BIAS}": None}, "layer 1, ffn_up: activation_bias must be .*it is absent"),
        (brep_tensors("self_attn.q_proj", 48), "one site.*has 6 of them in 3 layers, at attn_q, ffn_up"),
        (brep_tensors("mlp.up_proj", 40, layers=1), r"one width and one rank.*\(40,\), \(48,\)"),
    ],
)
def test_what_is_wrong_in_breps_file_is_refused(
    tiny_model: Callable[..., PreTrainedModel], tmp_path: Path, changes: dict[str, torch.Tensor | None], message: str
) -> None:
    tensors = {**brep_tensors("mlp.up_proj", 48), **changes}
    torch.save({key: tensor for key, tensor in tensors.items() if tensor is not None}, tmp_path / "delta_vector.pth")
    with pytest.raises(UserError, match=message):
        import_checkpoint(tmp_path, tiny_model())


def test_what_is_no_checkpoint_and_options_that_are_not_its_own_are_refused(
    tiny_model: Callable[..., PreTrainedModel], tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=r"is neither$"):
        import_checkpoint(tmp_path, tiny_model())
    save_with_pyreft(tmp_path / "intervenable_model", tiny_model(), pyreft.LoreftIntervention, BLOCKS)
    with pytest.raises(UserError, match=r"is neither; did you mean .*/intervenable_model"):
        import_checkpoint(tmp_path, tiny_model())
    torch.save(brep_tensors("mlp.up_proj", 48), tmp_path / "delta_vector.pth")
    with pytest.raises(UserError, match="act_fn and dropout are LoReFT's and DiReFT's"):
        import_checkpoint(tmp_path, tiny_model(), gate="always", act_fn="relu")


def test_what_the_files_do_not_hold_is_said_or_is_pyrefts_habit(
    tiny_model: Callable[..., PreTrainedModel], tmp_path: Path
) -> None:
    save_with_pyreft(tmp_path / "pyreft", tiny_model(), pyreft.LoreftIntervention, BLOCKS)
    assert read_checkpoint(tmp_path / "pyreft", act_fn="linear").config.gate == "prompt"
    with pytest.raises(UserError, match=r"pyreft's files do not hold act_fn.*linear"):
        read_checkpoint(tmp_path / "pyreft")
    torch.save(brep_tensors("mlp.up_proj", 48), tmp_path / "delta_vector.pth")
    with pytest.raises(UserError, match=r"the gate has to be said: tokens:N\+1 .* off for 0 \(the base\)"):
        read_checkpoint(tmp_path)
    assert read_checkpoint(tmp_path, gate="off").config.gate == "off"


SAID = {"model_path": "/mnt/models/Meta-Llama-3-8B-Instruct", "op_position": "ffn_up", "template_index": "llama"}


@pytest.mark.parametrize(
    ("changes", "base", "template", "warnings"),
    [
        ({}, "meta-llama/Meta-Llama-3-8B-Instruct", "chat-step-by-step/1", []),
        ({}, "llama-13b", "chat-step-by-step/1", ["says base .*Meta-Llama-3-8B-Instruct, and it is llama-13b"]),
        ({"op_position": ["attn_q", "attn_k"]}, None, "chat-step-by-step/1", ["says site .*attn_q.*and it is ffn_up"]),
        ({"template_index": 1, "model_path": None}, "llama-13b", None, []),
        ({"model_path": "a" * 300}, None, "chat-step-by-step/1", []),
        ({"template_index": "qwen3"}, None, "chat-thinking/1", []),
    ],
)
def test_what_a_train_config_says_is_used_and_held_against_the_rest(
    tmp_path: Path, changes: dict[str, object], base: str | None, template: str | None, warnings: list[str]
) -> None:
    torch.save(brep_tensors("mlp.up_proj", 48), tmp_path / "delta_vector.pth")
    (tmp_path / "train_config.json").write_text(json.dumps({**SAID, **changes}))
    with catch_warnings(record=True) as caught:
        simplefilter("always")
        checkpoint = read_checkpoint(tmp_path, gate="always", base_model=base)
    assert (checkpoint.config.base_model, checkpoint.config.template) == (base, template)
    assert len(caught) == len(warnings)
    assert all(re.search(said, str(warning.message)) for said, warning in zip(warnings, caught, strict=True))
    (note,) = checkpoint.notes
    assert note.startswith("train_config.json: base ")
    (tmp_path / "train_config.json").write_text("{")
    with pytest.raises(UserError, match=r"train_config\.json must be BREP's, or not be there"):
        read_checkpoint(tmp_path, gate="always")


def test_an_adapter_for_all_layers_of_a_base_less_deep_is_warned_of(
    tiny_model: Callable[..., PreTrainedModel], tmp_path: Path
) -> None:
    torch.save(brep_tensors("mlp.up_proj", 48), tmp_path / "delta_vector.pth")
    with pytest.warns(UserWarning, match="for all layers of a base with 3, and this one has 4"):
        import_checkpoint(tmp_path, tiny_model(num_hidden_layers=4), gate="always")


def test_pickles_run_no_code(tiny_model: Callable[..., PreTrainedModel], tmp_path: Path) -> None:
    class Harm:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return Path.touch, (Path(f"{tmp_path}/harmed"),)  # type: ignore[return-value]

    torch.save({f"{UP}{BIAS}": Harm()}, tmp_path / "delta_vector.pth")
    with pytest.raises(UserError, match="must hold tensors and nothing else"):
        import_checkpoint(tmp_path, tiny_model())
    assert not (tmp_path / "harmed").exists()


@pytest.mark.parametrize("num_prefix", [1, 4])
def test_breps_number_of_prefix_tokens_is_a_gate_of_one_more_that_keeps_the_cache(
    tiny_model: Callable[..., PreTrainedModel], tmp_path: Path, num_prefix: int
) -> None:
    """BREP edits the pass over the prompt, which draws the first token, and n passes more."""
    tensors, model = brep_tensors("mlp.up_proj", 48), tiny_model()
    torch.save(tensors, tmp_path / "delta_vector.pth")
    reft_model = import_checkpoint(tmp_path, model, gate=f"tokens:{num_prefix + 1}")
    passes = [0, 0, 0]

    def edit_while_prefix(layer: int) -> Formula:
        scale, bias = (
            tensors[f"model.layers.{layer}.mlp.up_proj.delta_vector.activation_{name}"].float()
            for name in ("scaling", "bias")
        )

        def formula(h: torch.Tensor) -> torch.Tensor:
            passes[layer] += 1
            return scale * h + bias if passes[layer] <= 1 + num_prefix else h

        return formula

    settings = {"max_new_tokens": 16, "min_new_tokens": 16, "do_sample": False}
    output = reft_model.generate(TOKENS, handoff="keep", **settings)
    always = reft_model.generate(TOKENS, gate="always", **settings)
    for layer in range(3):
        module, formula = model.model.layers[layer].mlp.up_proj, edit_while_prefix(layer)
        module.register_forward_hook(lambda module, args, output, formula=formula: formula(output))
    expected = model.generate(TOKENS, **settings)
    assert torch.equal(output, expected)
    assert not torch.equal(output, always)
