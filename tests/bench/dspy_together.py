"""DSPy's half of `better_together.py`: run by the interpreter of an environment with dspy.

BetterTogether (`p -> w -> p`) on Iris against a vLLM server that takes adapters. What had to be patched in DSPy 3.4.1
is `Served` below, a provider of our own: `LocalProvider` serves by sglang, which is made for GPUs, and trains by a TRL
that still had `setup_chat_format` and `SFTConfig(max_seq_length=…)` (1.16 has neither). It merges adapters into
float16 copies of the model; here the server takes them as they are. Prints one JSON document. Imports nothing of btc.
"""

from __future__ import annotations

import argparse
import csv
import json
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from typing import Any

import dspy
from dspy.clients.provider import Provider, TrainingJob
from dspy.evaluate import Evaluate
from dspy.teleprompt import BetterTogether, BootstrapFewShotWithRandomSearch, BootstrapFinetune

Signature = dspy.Signature(
    "sepal_length: float, sepal_width: float, petal_length: float, petal_width: float"
    " -> species: Literal['setosa', 'versicolor', 'virginica']",
    "Name the species of the iris with these measurements in centimetres.",
)


def examples(path: str) -> list[dspy.Example]:
    with Path(path).open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    names = [name for name in rows[0] if name != "species"]
    return [
        dspy.Example(**{name: float(row[name]) for name in names}, species=row["species"]).with_inputs(*names)
        for row in rows
    ]


def same_species(example: dspy.Example, prediction: Any, trace: Any = None) -> bool:
    return bool(example.species == prediction.species)


class Served(Provider):
    """Trains an adapter in a process of its own and loads it into the server under a new name."""

    def __init__(self, python: str, folder: Path, url: str) -> None:
        super().__init__()
        self.finetunable = True
        self.TrainingJob = TrainingJob
        self.trained: list[int] = []
        """Rows of each training."""
        self._python, self._folder, self._url = python, folder, url

    def launch(self, lm: Any, launch_kwargs: Any = None) -> None:
        """The server runs all the time."""

    def kill(self, lm: Any, launch_kwargs: Any = None) -> None:
        """It holds base and adapters."""

    def finetune(self, job: Any, model: str, train_data: Any, train_data_format: Any, train_kwargs: Any = None) -> str:
        name = f"tuned-{len(self.trained)}"
        data = self._folder / f"{name}.jsonl"
        data.write_text("".join(json.dumps(row) + "\n" for row in train_data), encoding="utf-8")
        self.trained.append(len(train_data))
        command = [self._python, str(Path(__file__).with_name("chat_sft.py")), str(data), str(self._folder / name)]
        subprocess.run([*command, json.dumps(train_kwargs)], check=True, stdout=sys.stderr)
        body = json.dumps({"lora_name": name, "lora_path": str(self._folder / name)}).encode()
        request = urllib.request.Request(
            f"{self._url}/load_lora_adapter", body, headers={"Content-Type": "application/json"}
        )
        urllib.request.urlopen(request, timeout=120).close()
        return f"openai/{name}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    for name in ("url", "model", "train", "dev", "test", "trainer", "training"):
        parser.add_argument(f"--{name}", required=True)
    parser.add_argument("--folder", type=Path, required=True)
    for name, value in (("candidates", 6), ("demos", 3), ("tokens", 48), ("threads", 16)):
        parser.add_argument(f"--{name}", type=int, default=value)
    args = parser.parse_args()
    provider = Served(args.trainer, args.folder, args.url)
    lm = dspy.LM(
        f"openai/{args.model}",
        api_base=args.url,
        api_key="none",
        max_tokens=args.tokens,
        temperature=0.0,
        cache=False,
        num_retries=0,
        provider=provider,
    )
    dspy.configure(lm=lm, num_threads=args.threads)
    program = dspy.Predict(Signature)
    program.set_lm(lm)
    train, dev, test = (examples(path) for path in (args.train, args.dev, args.test))
    scorer = Evaluate(devset=test, metric=same_species, num_threads=args.threads, max_errors=10**6)
    zero = scorer(program).score
    started = time.perf_counter()
    optimizer = BetterTogether(
        metric=same_species,
        p=BootstrapFewShotWithRandomSearch(
            metric=same_species,
            max_bootstrapped_demos=args.demos,
            max_labeled_demos=args.demos,
            num_candidate_programs=args.candidates,
            num_threads=args.threads,
            max_errors=10**6,
        ),
        w=BootstrapFinetune(metric=same_species, train_kwargs=json.loads(args.training), num_threads=args.threads),
    )
    best = optimizer.compile(
        program, trainset=train, valset=dev, strategy="p -> w -> p", num_threads=args.threads, max_errors=10**6, seed=0
    )
    seconds = time.perf_counter() - started
    print(
        json.dumps(
            {
                "seconds": seconds,
                "zero_shot": zero / 100,
                "test": scorer(best).score / 100,
                "prefixes": [[one["strategy"], one["score"]] for one in best.candidate_programs],
                "failed": best.flag_compilation_error_occurred,
                "rows": provider.trained,
            }
        )
    )


if __name__ == "__main__":
    main()
