"""Makes undamaged files of every kind, with tiny models."""

from __future__ import annotations

import gzip
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

from reft_math.commands.options.prefix import PrefixReftOptions
from reft_math.commands.output_folder import claim_output_dir
from reft_math.files.atomic import write_json


def make_models(folder: Path) -> Any:
    """Base, adapters and regressors, and the base that adapters are read onto."""
    import peft
    import pyreft
    import torch
    import transformers

    from interventions import PrefixReftConfig, get_prefix_reft_model
    from reft_math.data.arithmetic.tokenizer import build_tokenizer
    from reft_math.models import load_model, load_tokenizer
    from reft_math.regression.build import make_regressor
    from reft_math.regression.config import RegressorConfig

    torch.manual_seed(0)
    tokenizer, base = build_tokenizer(), str(folder / "base")
    size = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = transformers.LlamaConfig(vocab_size=len(tokenizer), eos_token_id=2, **size)
    transformers.LlamaForCausalLM(config).save_pretrained(base)
    tokenizer.save_pretrained(base)
    model = load_model(base)
    for name, save in {
        "base-sharded": lambda path: model.save_pretrained(path, max_shard_size="30KB"),
        "base-pickled": lambda path: torch.save(model.state_dict(), path / "pytorch_model.bin"),
    }.items():
        shutil.copytree(base, folder / name)
        (folder / name / "model.safetensors").unlink()
        save(folder / name)
    loreft: dict[str, Any] = {"intervention": "loreft", "site": "block", "rank": 2, "act_fn": "relu"}
    for name, changes in (("red", {}), ("loreft", loreft)):
        reft_model = get_prefix_reft_model(model, PrefixReftConfig(base_model="arithmetic", k=10, **changes))
        reft_model.save_pretrained(folder / name)
        reft_model.unload()
    places = [
        {
            "layer": layer,
            "component": "block_output",
            "intervention": pyreft.LoreftIntervention(embed_dim=32, low_rank_dimension=2),
        }
        for layer in range(2)
    ]
    pyreft.get_reft_model(load_model(base), pyreft.ReftConfig(representations=places)).save(str(folder / "pyreft"))
    (folder / "brep").mkdir()
    said = {"model_path": str(folder), "op_position": "ffn_up", "template_index": "llama"}
    put(folder / "brep" / "train_config.json", json.dumps(said))
    key = "model.layers.0.mlp.up_proj.delta_vector.activation"
    torch.save(
        {f"{key}_{name}": torch.ones(1, 48) for name in ("scaling", "bias")}, folder / "brep" / "delta_vector.pth"
    )
    lora = peft.get_peft_model(
        load_model(base), peft.LoraConfig(target_modules=["q_proj"], use_dora=True, trainable_token_indices=[5])
    )
    lora.peft_config["default"].base_model_name_or_path = base
    lora.save_pretrained(folder / "peft")
    for name, loss, tune in (("regressor", "head:mean", "red"), ("regressor-lora", "raft", "lora")):
        settings = RegressorConfig(loss=loss, tune=tune, base_model=base)  # type: ignore[arg-type]
        make_regressor(load_model(base), load_tokenizer(base), settings).save_pretrained(folder / name)
    return model


def make_data(folder: Path) -> None:
    """Own files, and each data set under its name."""
    from reft_math.data import amazon

    numbers = range(14)
    write_lines(folder / "own.jsonl", [{"question": f"q {n}", "solution": "s", "answer": n} for n in numbers])
    write_lines(folder / "rows.jsonl", [{"id": str(n), "text": f"t {n}", "target": n / 2} for n in numbers])
    write_lines(folder / "made.jsonl", [{"question": f"q {n}", "gold": n, "completion": f"#### {n}"} for n in numbers])
    solved = {"problem": "q", "solution": "s", "answer": "1", "subject": "Algebra", "level": 1}
    write_lines(folder / "gsm8k" / "test.jsonl", [{"question": f"q {n}", "answer": f"#### {n}"} for n in numbers])
    write_lines(folder / "math500" / "test.jsonl", [solved for _ in numbers])
    varied = [{"ID": f"chal-{n}", "Body": "b.", "Question": "q?", "Answer": n / 2, "Type": "Sum"} for n in numbers]
    write_lines(folder / "svamp" / "test.jsonl", varied)
    write_list(folder / "own.json", [{"question": f"q {n}", "solution": "s", "answer": n} for n in numbers])
    write_list(folder / "mawps" / "test.json", [{"instruction": f"q {n}", "answer": f"{n}"} for n in numbers])
    ours = [{"instruction": f"q {n}", "input": "", "output": "s", "answer": n} for n in numbers]
    write_list(folder / "math10k" / "train.json", ours)
    put(folder / "rows.csv", "id,text,target\n" + "".join(f'{n},"a, {n}",{n}\n' for n in numbers))
    put(folder / "stsb" / "dev.csv", "".join(f'"a, {n}",b,{n / 5}\n' for n in numbers))
    names = ("marketplace", amazon.ID, *amazon.TEXTS, "star_rating")
    reviews = "\n".join(["\t".join(names), *("\t".join(("US", f"R{n}", *"abcde", "3")) for n in numbers)]) + "\n"
    put(folder / "amazon" / amazon.FILES["amazon:wireless"], reviews)
    packed = folder / "amazon" / (amazon.FILES["amazon:music"] + ".gz")
    packed.write_bytes(gzip.compress(reviews.encode(), mtime=0))
    put(folder / "movielens" / "movies.dat", "".join(f"{n}::m {n}::Drama\n" for n in numbers))
    put(folder / "movielens" / "ratings.dat", "".join(f"1::{n}::3::{n}\n" for n in numbers))


def make_runs(folder: Path) -> None:
    """Writes files from which a run resumes: settings, finished experiments, checkpoints, probes."""
    import numpy as np

    from interventions import PrefixReftConfig
    from reft_math.probes.files import save_probes
    from reft_math.probes.number import Probe
    from reft_math.training.checkpoints import write_checksums

    options = resumed(folder / "run")
    claim_output_dir(replace(options, resume=False), {"train": {"rows": 3, "sha256": "a"}})
    put(folder / "run" / "setting.yaml", "k: 3\nseed: 1\nmodel: [base]\n# of mine\nlayers: '0,1'\n")
    write_json(folder / "run" / "finished.json", {"lora": {"command": "train/lora.py", "seconds": 1.5, "time": 3.0}})
    for step in (1, 2):
        PrefixReftConfig().save_pretrained(folder / "run" / f"checkpoint-{step}")
        write_checksums(folder / "run" / f"checkpoint-{step}")
    probe = Probe(np.ones((2, 3)), 0.5, 1.0)
    save_probes(folder / "run" / "probes.safetensors", {("number", "identity"): probe})


def resumed(folder: Path) -> PrefixReftOptions:
    """Writes settings of a resumed run."""
    return PrefixReftOptions(output_dir=str(folder), resume=True)


def write_lines(path: Path, rows: list[dict[str, Any]]) -> None:
    put(path, "".join(json.dumps(row) + "\n" for row in rows))


def write_list(path: Path, rows: list[dict[str, Any]]) -> None:
    put(path, json.dumps(rows))


def put(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def make_results(folder: Path) -> None:
    from reft_math.scoring.evaluate import score_tables

    summary = {"correct": 3, "total": 6, "accuracy": 0.5, "interval_95": [0.2, 0.8], "strict": 3, "mean_tokens": 4.0}
    trained = {"learning_rate": 0.1, "epochs": 3.0, "k": 10, "full_fraction": 0.0, "model": "arithmetic"}
    trained["seed"] = 0
    results = {"config": trained, "train_rows": 64, "trainable_parameters": 3072, "evaluation": {"prefix": summary}}
    trace = {name: [0.1, 0.2] for name in ("step", "norm", "scale_norm")}
    results["bias_norm"] = {"controller": "projection", "target": 0.2, "achieved": 0.2, "trace": trace}
    results |= {"dataset": "arithmetic", "gate": "kl:1", "calibration": None, "commit": "a", "date": "2026-01-01T00"}
    results["score_tables"] = score_tables({"prefix": summary})
    scored = {"gold": "1", "completion": "x", "correct": True, "strict": False}
    for name in ("one", "two"):
        records = [{"id": str(row), "question": f"q {row}", **scored} for row in range(6)]
        write_lines(folder / "runs" / name / "records" / "prefix.jsonl", records)
        write_json(folder / "runs" / name / "results.json", results)
        put(folder / "runs" / name / "table.csv", "a,b\n1,2.5\n")
