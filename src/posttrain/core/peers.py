"""What other trainers call things: their options and commands, and what they are here.

A name of theirs that is unknown here is answered by its meaning. The command line, recipes, the
Python functions and the page docs/reference/coming-from.md read this one table.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from functools import cache

from posttrain.core.errors import nearest, nearly

TRL, AXOLOTL, FACTORY, UNSLOTH, TUNE = "TRL", "axolotl", "LLaMA-Factory", "Unsloth", "torchtune"


@dataclass(frozen=True)
class Peer:
    """Names that mean one thing.

    Attributes:
        names: theirs, with underscores, by trainer; those of transformers' TrainingArguments are
            under TRL, and hold for LLaMA-Factory and Unsloth, too.
        ours: settings, or commands; empty where there is none.
        note: what differs, or why there is none, as a clause.
    """

    names: dict[str, str]
    ours: tuple[str, ...] = ()
    note: str = ""

    @property
    def every(self) -> list[str]:
        """The names, once each."""
        return list(dict.fromkeys(" ".join(self.names.values()).split()))


def _same(ours: str, note: str = "", **names: str) -> Peer:
    trainers = {"trl": TRL, "axolotl": AXOLOTL, "factory": FACTORY, "unsloth": UNSLOTH}
    spelled = {{**trainers, "tune": TUNE}[trainer]: value for trainer, value in names.items()}
    return Peer(spelled, (ours,) if ours else (), note)


OPTIONS: tuple[Peer, ...] = (
    # ------------------------------------------------------------------------------ model and data
    _same(
        "model",
        trl="model_name_or_path",
        axolotl="base_model",
        unsloth="model_name",
        tune="checkpoint_dir",
    ),
    _same(
        "data",
        "files, folders or hub ids",
        trl="dataset_name train_dataset",
        axolotl="datasets pretraining_dataset",
        factory="dataset",
        unsloth="dataset",
        tune="dataset data_files",
    ),
    _same(
        "validation",
        "given like data",
        trl="eval_dataset",
        axolotl="test_datasets",
        factory="eval_dataset",
        tune="dataset_val",
    ),
    _same(
        "validation",
        "a file of its own; posttrain data split makes one without leaks",
        axolotl="val_set_size",
        factory="val_size",
    ),
    _same(
        "data",
        "written after the file: FILE,split=NAME",
        trl="dataset_train_split dataset_test_split",
    ),
    _same("data", "written after the hub id: ID,subset=NAME", trl="dataset_config"),
    _same(
        "data",
        "written after the file: FILE,text=COLUMN",
        trl="dataset_text_field",
        axolotl="text_column",
    ),
    _same("data", "written after the file: FILE,limit=N", factory="max_samples"),
    _same(
        "data", "written after each file: FILE,weight=X", factory="interleave_probs mix_strategy"
    ),
    _same("", "rows are always streamed", trl="dataset_streaming", factory="streaming"),
    _same(
        "",
        "rows are prepared once, in one process, and kept in the run's folder",
        trl="dataset_num_proc dataloader_num_workers",
        axolotl="dataset_processes dataset_prepared_path",
        factory="preprocessing_num_workers overwrite_cache tokenized_path",
    ),
    _same("out", trl="output_dir", axolotl="output_dir", unsloth="save_path", tune="output_dir"),
    # ------------------------------------------------------------------------------------- how long
    _same("epochs", trl="num_train_epochs", axolotl="num_epochs"),
    _same("steps", trl="max_steps", axolotl="max_steps", tune="max_steps_per_epoch"),
    _same(
        "batch_size",
        "the sequences of a whole step, on all devices; budget bounds the memory of a pass",
        trl="per_device_train_batch_size",
        axolotl="micro_batch_size",
    ),
    _same(
        "batch_size",
        "the sequences of a whole step, cut into passes of budget tokens by themselves",
        trl="gradient_accumulation_steps",
        axolotl="gradient_accumulation_steps",
        tune="gradient_accumulation_steps",
    ),
    _same(
        "budget",
        "the tokens of a pass, which validation keeps, too",
        trl="per_device_eval_batch_size auto_find_batch_size",
        axolotl="eval_batch_size",
    ),
    _same(
        "max_length",
        trl="max_seq_length max_prompt_length",
        axolotl="sequence_len",
        factory="cutoff_len",
        unsloth="max_seq_length",
        tune="max_seq_len",
    ),
    _same("truncate", trl="truncation_mode"),
    _same(
        "",
        "batches are always packed, without padding, and sequences do not see each other",
        trl="packing packing_strategy padding_free group_by_length pad_to_multiple_of eval_packing",
        axolotl="sample_packing pad_to_sequence_len eval_sample_packing",
        factory="packing neat_packing",
        tune="packed",
    ),
    # ------------------------------------------------------------------------------------ optimiser
    _same("learning_rate", trl="lr", tune="lr"),
    _same(
        "schedule",
        "linear, cosine, wsd or constant",
        trl="lr_scheduler_type",
        axolotl="lr_scheduler",
        tune="lr_scheduler",
    ),
    _same(
        "warmup",
        "as a share of the steps",
        trl="warmup_ratio warmup_steps",
        axolotl="warmup_ratio warmup_steps",
        tune="num_warmup_steps",
    ),
    _same(
        "",
        "the optimiser is always AdamW, with learning_rate, betas and weight_decay",
        trl="optim optim_args",
        axolotl="optimizer",
        tune="optimizer",
    ),
    _same("betas", "both of them", trl="adam_beta1 adam_beta2", axolotl="adam_beta1 adam_beta2"),
    _same("", "Adam's epsilon is fixed", trl="adam_epsilon", axolotl="adam_epsilon"),
    _same("clip", trl="max_grad_norm", axolotl="max_grad_norm", tune="clip_grad_norm"),
    _same("seed", trl="data_seed", unsloth="random_state"),
    _same("neftune", trl="neftune_noise_alpha", axolotl="neftune_noise_alpha"),
    # ---------------------------------------------------------------- validation, checkpoints, logs
    _same(
        "validate_every",
        "in steps",
        trl="eval_steps eval_strategy evaluation_strategy",
        axolotl="eval_steps evals_per_epoch eval_strategy",
        tune="run_val_every_n_steps",
    ),
    _same(
        "checkpoint_every",
        "in steps",
        trl="save_steps save_strategy",
        axolotl="save_steps saves_per_epoch save_strategy",
    ),
    _same("checkpoint_keep", trl="save_total_limit", axolotl="save_total_limit"),
    _same("keep_best", "by held-out loss", trl="load_best_model_at_end metric_for_best_model"),
    _same("patience", trl="early_stopping_patience", axolotl="early_stopping_patience"),
    _same(
        "",
        "the same command goes on where it stopped",
        trl="resume_from_checkpoint overwrite_output_dir",
        axolotl="resume_from_checkpoint auto_resume_from_checkpoints",
        tune="resume_from_checkpoint",
    ),
    _same(
        "",
        "every step is logged, in metrics.jsonl of the run's folder",
        trl="logging_steps logging_dir logging_strategy logging_first_step",
        axolotl="logging_steps",
        factory="plot_loss",
        tune="log_every_n_steps",
    ),
    _same(
        "track",
        "wandb, trackio, mlflow or tensorboard",
        trl="report_to",
        axolotl="use_tensorboard use_wandb wandb_project use_mlflow",
        factory="use_swanlab",
        tune="metric_logger",
    ),
    _same("run_name", axolotl="wandb_name wandb_run_id", factory="swanlab_run_name"),
    # ------------------------------------------------------------------------- memory and precision
    _same(
        "activation_checkpointing",
        trl="gradient_checkpointing",
        axolotl="gradient_checkpointing",
        unsloth="use_gradient_checkpointing",
        tune="enable_activation_checkpointing",
    ),
    _same(
        "",
        "the precision follows from the device: float32 on a CPU, bfloat16 on a GPU",
        trl="bf16 fp16 tf32 dtype torch_dtype",
        axolotl="bf16 fp16 tf32 bfloat16",
        factory="pure_bf16",
        unsloth="dtype",
        tune="dtype",
    ),
    _same("device", trl="use_cpu no_cuda", axolotl="device_map"),
    _same(
        "",
        "the way to compute attention follows from the device",
        trl="attn_implementation",
        axolotl="flash_attention sdp_attention xformers_attention flex_attention",
        factory="flash_attn",
    ),
    _same("", "the matrix of logits is never held", trl="use_liger_kernel use_liger"),
    # ----------------------------------------------------------------------------------------- LoRA
    _same("lora", trl="use_peft", axolotl="adapter", factory="finetuning_type"),
    _same("lora_rank", trl="lora_r", axolotl="lora_r", unsloth="r"),
    _same(
        "lora_targets",
        trl="lora_target_modules",
        axolotl="lora_target_modules lora_target_linear",
        factory="lora_target",
        unsloth="target_modules",
        tune="lora_attn_modules",
    ),
    _same(
        "groups",
        "PATTERN=0 freezes the parameters whose names match",
        axolotl="unfrozen_parameters",
        factory="freeze_trainable_layers freeze_trainable_modules",
    ),
    # ------------------------------------------------------------------------ chat, what is trained
    _same(
        "chat_template",
        "a file, where the model's own is not the one",
        trl="chat_template_path",
        axolotl="chat_template_jinja",
        factory="template",
    ),
    _same(
        "train_on",
        "which answers; prompts are never trained",
        trl="assistant_only_loss completion_only_loss",
        axolotl="train_on_inputs roles_to_train",
        factory="train_on_prompt mask_history",
        unsloth="train_on_responses_only",
        tune="train_on_input",
    ),
    # --------------------------------------------------------------------------------- preferences
    _same("method", trl="loss_type", axolotl="rl", factory="pref_loss"),
    _same("beta", axolotl="rl_beta", factory="pref_beta"),
    _same("label_smoothing", axolotl="dpo_label_smoothing", factory="dpo_label_smoothing"),
    _same("mix", "METHOD=WEIGHT", trl="loss_weights"),
    _same(
        "mix", "for example dpo=1 sft=0.2", trl="rpo_alpha", axolotl="rpo_alpha", factory="pref_ftx"
    ),
    _same("nll", trl="cpo_alpha", axolotl="cpo_alpha orpo_alpha"),
    _same("gamma", trl="simpo_gamma", axolotl="simpo_gamma", factory="simpo_gamma"),
    _same("f_divergence", trl="f_divergence_type"),
    _same("f_alpha", trl="f_alpha_divergence_coef"),
    _same("weighting", trl="use_weighting", axolotl="dpo_use_weighting"),
    _same("tau", trl="discopop_tau"),
    _same(
        "desirable",
        trl="desirable_weight",
        axolotl="kto_desirable_weight",
        factory="kto_chosen_weight",
    ),
    _same(
        "undesirable",
        trl="undesirable_weight",
        axolotl="kto_undesirable_weight",
        factory="kto_rejected_weight",
    ),
    _same("reference_model", trl="ref_model", factory="ref_model"),
    _same(
        "reference",
        "stored, which is the default",
        trl="precompute_ref_log_probs precompute_ref_batch_size",
    ),
    _same("center", trl="center_rewards_coefficient"),
    # ------------------------------------------------------------------------------------ sampling
    _same(
        "max_tokens",
        trl="max_new_tokens max_completion_length",
        factory="max_new_tokens",
        tune="max_new_tokens",
    ),
    _same("n", trl="num_generations"),
    _same("temperature", "0 takes the most likely token", trl="do_sample", factory="do_sample"),
    _same("scorer", trl="reward_funcs reward_model_path"),
    # -------------------------------------------------------------------------------- what is none
    _same(
        "",
        "a command is one process",
        trl="deepspeed fsdp fsdp_config local_rank ddp_timeout",
        axolotl="deepspeed fsdp fsdp_config",
        factory="deepspeed ddp_timeout",
    ),
    _same(
        "",
        "weights are loaded as the folder has them",
        trl="load_in_4bit load_in_8bit",
        axolotl="load_in_4bit load_in_8bit",
        factory="quantization_bit",
        unsloth="load_in_4bit",
    ),
    _same("", "code that comes with a model is never run", trl="trust_remote_code"),
    _same(
        "",
        "nothing is uploaded: the run's folder has a model folder that any tool can upload",
        trl="push_to_hub hub_model_id hub_token",
        axolotl="hub_model_id",
        unsloth="push_model hub_path",
    ),
    _same("", "layers are not compiled", trl="torch_compile", tune="compile"),
    _same("", "adapters are plain LoRA", trl="use_dora use_rslora", axolotl="peft_use_dora"),
    _same("", "a command is what is done", trl="do_train do_eval"),
)

COMMANDS: tuple[Peer, ...] = (
    _same("sft", "for preferences posttrain preference, for several stages posttrain run",
          axolotl="train", factory="train", unsloth="train"),
    _same("sft", trl="finetune", tune="full_finetune_single_device lora_finetune_single_device"),
    _same("preference", "--method NAME", trl="dpo kto orpo cpo simpo bco ipo",
          tune="lora_dpo_single_device full_dpo_distributed"),
    _same("reward-model", trl="reward", factory="rm"),
    _same("reward-model", "on rows with labels of steps", trl="prm"),
    _same("adapt", "domain adaptation on text", factory="pt pretrain"),
    _same("eval", axolotl="evaluate", tune="eleuther_eval"),
    _same("chat", axolotl="inference", factory="webchat", tune="generate"),
    _same("data inspect", "shows what would be trained", axolotl="preprocess"),
    _same("plan", "checks a recipe and shows what would run", tune="validate"),
    _same("schema", "prints what a recipe may hold", tune="ls cp cat"),
    _same("", "a run's folder has the merged model, in model/", axolotl="merge_lora",
          factory="export"),
    _same("", "methods that sample while they train are not there; posttrain sample-pairs makes "
          "pairs of a model's own answers", trl="grpo rloo ppo online_dpo gkd"),
    _same("", "nothing serves a model yet; its folder loads in any server", trl="vllm_serve",
          factory="api webui", axolotl="vllm_serve"),
    _same("", "models and data sets are given by their hub ids", axolotl="fetch", tune="download"),
)  # fmt: skip


@cache
def _table(commands: bool) -> dict[str, tuple[Peer, ...]]:
    """The meanings of a name; the first is the one that fits where several do."""
    found: dict[str, tuple[Peer, ...]] = {}
    for peer in COMMANDS if commands else OPTIONS:
        for name in peer.every:
            found[name] = (*found.get(name, ()), peer)
    return found


def _key(name: str) -> str:
    """`--Lr`, `optimizer.lr` and `lr=1` as the table has them."""
    return re.split(r"[=.]", name.lstrip("-").partition("=")[0])[-1].replace("-", "_").lower()


def cure(
    name: str,
    known: Collection[str],
    *,
    spelled: Callable[[str], str] = str,
    otherwise: str = "",
    elsewhere: str = "which this does not take",
    commands: bool = False,
) -> str:
    """What to write instead of an unknown name: ours by meaning, or the nearest by spelling.

    Args:
        name: as it was given. known: what could have been given.
        spelled: one of our names as it is written here.
        otherwise: the cure where nothing is like it; empty lists what is known.
        elsewhere: what is said of ours where it is not known.
        commands: the names are commands, not options.
    """
    close = nearly(name, known)
    peers = _table(commands).get(_key(name), ())
    if not peers or (close and _key(close) == _key(name)):
        return nearest(name, known, otherwise)
    fitting = [one for one in peers if any(spelled(ours) in known for ours in one.ours)]
    peer = (fitting or peers)[0]
    if not peer.ours:
        return f"{'there is none' if commands else 'leave it out'}: {peer.note}"
    here = " and ".join(spelled(ours) for ours in peer.ours)
    if commands:
        here = f"posttrain {here}"
    if peer.note.startswith("--"):
        here += " " + peer.note.replace("NAME", _key(name))
    elif peer.note:
        here += f" ({peer.note})"
    return f"it is {here} here" + ("" if fitting else f"; {elsewhere}")


def trainers(peer: Peer) -> Iterable[tuple[str, list[str]]]:
    """Their names, by trainer."""
    return ((trainer, names.split()) for trainer, names in peer.names.items())
