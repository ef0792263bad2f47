"""Titles and purposes of each command's results in a report."""

from __future__ import annotations

from reft_math.experiments.result_folders import ResultFolder

# By the name of a command's options, which run_config.json holds; in the order of a report.
_ABOUT = {
    "PrefixReftOptions": (
        "Prefix-trained interventions",
        "Interventions trained on the first tokens of solutions, their bias norm held, evaluated against the base.",
    ),
    "ordinary ReFT": (
        "Ordinary ReFT",
        "Interventions trained on whole solutions, evaluated against the base.",
    ),
    "PrefixRlOptions": (
        "Prefixes trained by reward",
        "Interventions trained on answers alone, by the base's answers after their first tokens.",
    ),
    "LoraOptions": ("LoRA", "Low-rank adapters trained on the same data, evaluated against the base."),
    "PretrainingOptions": ("Pretraining", "The embedded model, pretrained from random weights."),
    "CompareOptions": (
        "Comparison",
        "Runs side by side on the same problems: accuracy with its interval, and McNemar's paired test.",
    ),
    "ErrorAnalysisOptions": (
        "Errors by calculation",
        "What wrong solutions get wrong first (an equation, a given, the plan), and where equations are false.",
    ),
    "ArithmeticOptions": ("Evaluation on arithmetic", "Accuracy on held-out problems of the embedded world."),
    "Gsm8kOptions": ("Evaluation on GSM8K", "Accuracy on the test split."),
    "Math500Options": ("Evaluation on MATH500", "Accuracy on the 500 problems, scored by math-verify."),
    "CalibrationOptions": ("Choice of a gate", "Accuracy on the validation split under each gate."),
    "NormTraceOptions": ("Bias norm in training", "The bias norm, and how far RED's scales are from 1, by step."),
    "KLProfileOptions": (
        "Divergence along completions",
        "D = KL(p_mod ‖ p_base) by position, always on, and accuracy against the gate's threshold.",
    ),
    "HandoffOptions": (
        "Hand-off",
        "The first k tokens come from one decoder, the base goes on alone: accuracy against k.",
    ),
    "TrajectoryOptions": (
        "Trajectories",
        "How likely texts are to each decoder by position, and where their greedy answers part.",
    ),
    "NumberProbeOptions": (
        "Numbers",
        "Linear probes of encoded numbers, sums under pushes along them, and what adapters change along them.",
    ),
    "FaithfulnessOptions": (
        "Faithfulness",
        "Probes, fitted on the base, that tell true from false statements: what adapters change in their scores.",
    ),
    "NormSweepOptions": (
        "Norm sweep",
        "Accuracy against the bias norm, always on and under the gate; the norm is chosen on validation problems.",
    ),
    "AblationOptions": (
        "Ablation",
        "Truncation, norm control and the gate, each on and off: accuracy of all eight combinations.",
    ),
    "RegressionOptions": (
        "Regression, trained",
        "A model trained to predict numbers: errors and correlations before and after.",
    ),
    "RegressionEvaluationOptions": ("Regression, evaluated", "Errors and correlations of every predictor."),
    "CompareRegressionOptions": ("Regressors compared", "Errors side by side with paired differences."),
}


def title_and_purpose(folder: ResultFolder) -> tuple[str, str, int]:
    """Returns title, a sentence, and place in a report; unknown commands come last without a title."""
    command = str((folder.settings or {}).get("command"))
    if command == "PrefixReftOptions" and folder.config.get("full_fraction") == 1:
        command = "ordinary ReFT"
    title, purpose = _ABOUT.get(command, ("", ""))
    return title, purpose, list(_ABOUT).index(command) if command in _ABOUT else len(_ABOUT)
