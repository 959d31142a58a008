"""Executes a program on a batch of examples as dataflow (design §4): no threads, all that is ready goes out together.

Each live example is a generator of `interpret`; `Execution` moves them along as completions come, asks the stores
before the backend, and makes one request of identical ones. Knows nothing of metrics or optimisers.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from bt_compiler.canonical import seed_of
from bt_compiler.data.example import Example, copies
from bt_compiler.engine.cache import request_key
from bt_compiler.engine.confidence import check_scoring
from bt_compiler.engine.formats import load_format
from bt_compiler.engine.interpret import interpret_program
from bt_compiler.engine.progress import Progress, Silent
from bt_compiler.engine.request import Backend, Completion, Request, Sampling
from bt_compiler.engine.running import Ask, Fork, NodeFailed, Search, Setting, Use
from bt_compiler.engine.trace import Failure, Trace
from bt_compiler.engine.under_way import Flight, Live, Task
from bt_compiler.engine.window import certain
from bt_compiler.errors import ExampleError
from bt_compiler.graph.candidate import Candidate, Prompt
from bt_compiler.graph.program import Call, Program
from bt_compiler.graph.walk import nodes

if TYPE_CHECKING:
    from bt_compiler.engine.cache import CompletionStore
    from bt_compiler.engine.retrieval import Retriever
    from bt_compiler.engine.tools import Tool

RETRY_TEMPERATURE = 0.7
"""Least temperature of the one repetition after an answer outside the grammar: greedy would repeat itself."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Engine:
    """Everything that executing needs beside the program, the candidate and the examples."""

    backends: Mapping[str, Backend]
    """By the name of the model in the spec (`Module.model`)."""
    retrievers: Mapping[str, Retriever] = field(default_factory=dict)
    tools: Mapping[str, Tool] = field(default_factory=dict)
    stores: tuple[CompletionStore, ...] = ()
    """Asked in order; a hit is written to those before it, a new completion to all."""
    turn: float | None = None
    """Seconds that a backend works at most where others wait too (`turn_of`); None: until one of its requests ends."""
    ended: Callable[[], None] | None = None
    """Called after each whole `run`, for stores that keep runs whole."""
    answered: Callable[[str, Completion], None] | None = None
    """Called with the model's name and each completion that its backend made or a store had (`Completion.cached`)."""

    def run(
        self,
        program: Program,
        candidate: Candidate,
        examples: Sequence[Example],
        *,
        beside: Sequence[Candidate] = (),
        seed: int = 0,
        repeats: int = 1,
        temperature: float | None = None,
        leave_own_demo_out: bool = False,
        progress: Progress | None = None,
    ) -> list[Trace]:
        """One trace for every example and repeat: all repeats of the first example, then all those of the second.

        Then the same of each candidate of `beside`; they run at once, so that batches are full.
        The result is a function of (program, candidate, examples, seed, repeats, temperature) and the backends'
        identities; not of the order in which completions come. `temperature` overrides every module's own. With
        `leave_own_demo_out`, demos that come from an example are not shown to that example, nor to its exact copies.
        `progress.advance` is called once a trace; the caller begins the stretch. Raises BackendError.
        """
        execution = Execution(
            engine=self,
            program=program,
            candidate=candidate,
            seed=seed,
            temperature=temperature,
            leave_own_demo_out=leave_own_demo_out,
        )
        told = progress or Silent()
        tickets = [
            execution.submit(example, repeat, one)
            for one in (candidate, *beside)
            for example in examples
            for repeat in range(repeats)
        ]
        traces: dict[int, Trace] = {}
        try:
            while not execution.idle:
                for ticket, trace in execution.step():
                    traces[ticket] = trace
                    told.advance(1)
        finally:
            execution.cancel()
        if self.ended is not None:
            self.ended()
        return [traces[ticket] for ticket in tickets]

    def close(self) -> None:
        """Closes every backend and tool."""
        for backend in self.backends.values():
            backend.close()
        for tool in self.tools.values():
            tool.close()


class Execution:
    """The incremental form of `Engine.run`: examples may be submitted at any time, traces come as they end.

    A backend serves one execution at a time. Not thread-safe but for `interrupt`: one thread submits and steps.
    """

    def __init__(
        self,
        *,
        engine: Engine,
        program: Program,
        candidate: Candidate,
        seed: int = 0,
        temperature: float | None = None,
        leave_own_demo_out: bool = False,
    ) -> None:
        self._engine = engine
        self._program = program
        self._candidate = candidate
        self._seed = seed
        self._temperature = temperature
        self._leave_own_demo_out = leave_own_demo_out
        self._formats = {name: load_format(name) for name in {module.format: None for module in program.modules}}
        facts = {module.model: engine.backends[module.model].facts() for module in program.modules}
        self._estimating = {model for model, known in facts.items() if known.get("tokens") == "estimated"}
        self._unconstrained = frozenset(
            module.name for module in program.modules if not facts[module.model].get("enforces_grammar", True)
        )
        check_scoring(program, facts)
        self._first_calls: dict[str, str] = {}
        for path, node in nodes(program):
            if isinstance(node, Call):
                for name in node.slots or (node.module,):
                    self._first_calls.setdefault(name, path)
        self._live: dict[int, Live] = {}
        self._tasks: dict[int, Task] = {}
        self._started = 0
        self._ready: deque[tuple[int, Any]] = deque()
        self._searches: list[tuple[int, Search]] = []
        self._asked: list[tuple[int, str, Request]] = []
        self._flights: dict[str, Flight] = {}
        self._by_key: dict[str, str] = {}
        self._done: list[tuple[int, Trace]] = []
        self._tickets = 0
        self._requests = 0

    @property
    def idle(self) -> bool:
        """Whether nothing is submitted that has not been handed out by `step`."""
        return not self._live and not self._done

    def submit(self, example: Example, repeat: int = 0, candidate: Candidate | None = None) -> int:
        """Takes one example; returns a ticket, which `step` gives back with its trace. `candidate`: another one."""
        whose = candidate or self._candidate
        ticket = self._tickets
        self._tickets += 1
        setting = Setting(
            program=self._program,
            prompts=self._prompts_for(whose, example),
            formats=self._formats,
            unconstrained=self._unconstrained,
        )
        running = interpret_program(setting, example.inputs)
        self._live[ticket] = Live(example.id, repeat, whose, setting)
        self._start(Task(ticket, running))
        return ticket

    def _start(self, task: Task) -> None:
        self._tasks[self._started] = task
        self._ready.append((self._started, None))
        self._started += 1

    def step(self) -> list[tuple[int, Trace]]:
        """Works until something has changed: moves examples along, sends what they ask for, waits for completions.

        Returns (ticket, trace) of those that ended; it may be empty while others are under way. Raises BackendError.
        """
        self._settle()
        if not self._done and self._flights:
            self._poll()
            self._settle()
        done, self._done = self._done, []
        return done

    def interrupt(self) -> None:
        """Makes a `step` that waits for completions return, so that more can be submitted. From any thread."""
        for backend in self._engine.backends.values():
            backend.interrupt()

    def cancel(self) -> None:
        """Forgets all that is under way."""
        for name, backend in self._engine.backends.items():
            ids = [id for id, flight in self._flights.items() if flight.backend == name]
            if ids:
                backend.cancel(ids)
        for task in self._tasks.values():
            task.running.close()
        self._tasks.clear()
        self._live.clear()
        self._ready.clear()
        self._searches.clear()
        self._asked.clear()
        self._flights.clear()
        self._by_key.clear()

    def _prompts_for(self, candidate: Candidate, example: Example) -> Mapping[str, Prompt]:
        prompts = candidate.prompts
        if not self._leave_own_demo_out:
            return prompts
        return {
            name: replace(prompt, demos=tuple(demo for demo in prompt.demos if not copies(demo.example, example.id)))
            for name, prompt in prompts.items()
        }

    def _settle(self) -> None:
        """Moves examples along until each has ended or waits for a backend that has its request."""
        while self._ready:
            while self._ready:
                self._advance(*self._ready.popleft())
            self._search()
            if not self._ready:
                self._send()

    def _advance(self, id: int, answer: Any) -> None:
        task = self._tasks[id]
        try:
            need = task.running.throw(answer) if isinstance(answer, ExampleError) else task.running.send(answer)
        except StopIteration as stop:
            self._end(id, stop.value)
            return
        except NodeFailed as failed:
            self._end(id, failed)
            return
        if isinstance(need, Search):
            self._searches.append((id, need))
        elif isinstance(need, Use):
            self._ready.append((id, self._used(need)))
        elif isinstance(need, Fork):
            task.ended, task.open = [None] * len(need.branches), len(need.branches)
            for place, branch in enumerate(need.branches):
                self._start(Task(task.ticket, branch, parent=id, place=place))
        else:
            try:
                request = self._request(need, self._live[task.ticket])
                self._asked.append((id, need.module.model, request))
            except ExampleError as error:
                self._ready.append((id, error))

    def _used(self, need: Use) -> Mapping[str, Any] | ExampleError:
        try:
            return self._engine.tools[need.tool](need.inputs)
        except ExampleError as error:
            return error

    def _end(self, id: int, outcome: Mapping[str, Any] | NodeFailed) -> None:
        """A task ended: its example has, or its fork goes on once the last branch ends."""
        task = self._tasks.pop(id)
        if task.parent is not None:
            waiting = self._tasks[task.parent]
            waiting.ended[task.place] = outcome
            waiting.open -= 1
            if not waiting.open:
                self._ready.append((task.parent, waiting.ended))
        elif isinstance(outcome, NodeFailed):
            self._finish(task.ticket, error=outcome.failure)
        else:
            self._finish(task.ticket, outputs=outcome)

    def _finish(self, ticket: int, *, outputs: Mapping[str, Any] | None = None, error: Failure | None = None) -> None:
        live = self._live.pop(ticket)
        trace = Trace(
            example=live.example, repeat=live.repeat, steps=tuple(live.setting.steps), outputs=outputs, error=error
        )
        self._done.append((ticket, trace))

    def _request(self, ask: Ask, live: Live) -> Request:
        """The request for a prompt. Raises ExampleError where it does not fit the context window."""
        backend = self._engine.backends[ask.module.model]
        tokens, window = backend.count_tokens(ask.prompt), backend.context_window
        if ask.module.model in self._estimating:
            tokens = certain(tokens)
        if window is not None and tokens + ask.grammar.max_tokens > window:
            raise ExampleError(
                "BTC523",
                f"the prompt of module `{ask.module.name}` has {tokens} tokens and its completion may take "
                f"{ask.grammar.max_tokens}, more than the context window of {window}",
            )
        self._requests += 1
        return Request(
            id=f"{live.candidate.id}-{self._requests}",
            prompt=ask.prompt,
            grammar=ask.grammar,
            sampling=Sampling() if ask.choices is not None else self._sampling(ask, backend, live.repeat),
            max_tokens=ask.grammar.max_tokens,
            adapter=live.candidate.adapter_for(ask.module.name),
            choices=ask.choices,
        )

    def _sampling(self, ask: Ask, backend: Backend, repeat: int) -> Sampling:
        generation = ask.module.generation
        own = generation.temperature if ask.draw is None else ask.draw.temperature
        temperature = own if self._temperature is None else self._temperature
        if ask.attempt:
            temperature = max(temperature, RETRY_TEMPERATURE)
        if temperature == 0:
            return Sampling()
        key = backend.prompt_key(ask.prompt)
        which: list[Any] = [] if ask.draw is None else [list(ask.draw.path)]
        if any(ask.loops):
            which.append({"loops": list(ask.loops)})  # first visits have the seeds of calls outside loops
        if self._first_calls.get(ask.module.name, ask.node) != ask.node:
            which.append({"node": ask.node})  # two calls for the same inputs are two draws
        seed = seed_of(self._seed, key if isinstance(key, str) else list(key), repeat, ask.attempt, *which)
        return Sampling(temperature=temperature, top_p=generation.top_p, seed=seed)

    def _search(self) -> None:
        """One `search` for every retriever and k, over all examples that wait for it."""
        waiting, self._searches = self._searches, []
        groups: dict[tuple[str, int], list[tuple[int, str]]] = {}
        for task, need in waiting:
            groups.setdefault((need.retriever, need.k), []).append((task, need.query))
        for (name, k), members in groups.items():
            queries = list(dict.fromkeys(query for _, query in members))
            found = dict(zip(queries, self._engine.retrievers[name].search(queries, k), strict=True))
            self._ready.extend((task, found[query]) for task, query in members)

    def _send(self) -> None:
        """Answers from the stores what they hold, joins identical requests, submits the rest."""
        asked, self._asked = self._asked, []
        fresh: dict[str, list[Request]] = {}
        for task, model, request in asked:
            key = request_key(self._engine.backends[model], request)
            if key in self._by_key:
                self._flights[self._by_key[key]].tasks.append(task)
                continue
            stored = self._stored(key)
            if stored is not None:
                if self._engine.answered is not None:
                    self._engine.answered(model, stored)
                self._ready.append((task, stored))
                continue
            self._by_key[key] = request.id
            self._flights[request.id] = Flight(model, key, [task])
            fresh.setdefault(model, []).append(request)
        for model, requests in fresh.items():
            self._engine.backends[model].submit(requests)

    def _stored(self, key: str) -> Completion | None:
        for index, store in enumerate(self._engine.stores):
            found = store.get(key)
            if found is not None:
                for earlier in self._engine.stores[:index]:
                    earlier.put(key, found)
                return replace(found, cached=True)
        return None

    def _poll(self) -> None:
        """Takes what ended; backends of several models take turns, so that none waits for the slowest."""
        models: dict[int, str] = {}
        for model in sorted({flight.backend for flight in self._flights.values()}):
            models.setdefault(id(self._engine.backends[model]), model)
        for model in models.values():
            backend = self._engine.backends[model]
            finished = backend.poll() if len(models) == 1 else backend.poll(self._engine.turn)
            if finished is None:
                continue
            if not finished:
                raise RuntimeError(f"backend of model {model} ended nothing though requests are in flight")
            landed = [(self._flights.pop(id), result) for id, result in finished if id in self._flights]
            new = [(flight.key, result) for flight, result in landed if isinstance(result, Completion)]
            for store in self._engine.stores:
                store.put_many(new)
            for flight, result in landed:
                del self._by_key[flight.key]
                if self._engine.answered is not None and isinstance(result, Completion):
                    self._engine.answered(flight.backend, result)
                self._deliver(flight, result)

    def _deliver(self, flight: Flight, result: Completion | ExampleError) -> None:
        for position, task in enumerate(flight.tasks):
            shared = replace(result, cached=True) if position and isinstance(result, Completion) else result
            self._ready.append((task, shared))
