"""Continuous batching: rows that are decoded together, whose places are taken by the next prompts as soon as some are free."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import torch
from torch import Tensor

from megatron_atesd.model.decoding import Decoder, PromptAttention, StepAttention
from megatron_atesd.model.kv_cache import CacheBlock, CacheLedger
from megatron_atesd.rollout.engine import PROMPT_TOKENS
from megatron_atesd.rollout.rows import Queue, Row

_ADMIT = 16  # one of so many places is free before prompts are read for it
_SLACK = 32  # one of so many rows is dead before it is taken out, and a block grows by one of so many columns, or by the least that pays
_LEAST = 8
_BLOCKS = 12  # more are joined, whatever it costs in padding
_PADDING = 0.03  # of all tokens; blocks are joined while it stays below


@dataclass
class GenerationStats:
    """Of one call, on this rank.

    steps: passes. slots: places over all steps; an empty one counts while prompts wait for it. tokens: sampled. cache_peak_bytes: the most
    that keys and values took at one time. token_peak_bytes: the most that those of the sequences then in the making come to.
    """

    steps: int = 0
    slots: int = 0
    tokens: int = 0
    cache_peak_bytes: int = 0
    token_peak_bytes: int = 0


@dataclass(eq=False)
class Batch:
    """The rows of a block; None where a response is finished."""

    block: CacheBlock
    rows: list[Row | None]

    @property
    def live(self) -> list[int]:
        """Places of the rows that go on."""
        return [place for place, row in enumerate(self.rows) if row is not None]


@dataclass(eq=False)
class Stream:
    """Rows that go through the model together.

    places: rows at most. budget: tokens of keys and values at most (None: any number), beside which there is memory for a copy of those of
    one layer.
    """

    decoder: Decoder
    queue: Queue
    places: int
    budget: int | None
    ledger: CacheLedger
    batches: list[Batch] = field(default_factory=list[Batch])
    sampled: list[Row | None] = field(default_factory=list[Row | None])  # of the pass on its way, in order
    message: Tensor = field(default_factory=lambda: torch.empty(2, 0))  # ids and log-probabilities of its tokens, once they are drawn

    @property
    def live(self) -> list[Row]:
        """Rows that go on."""
        return [row for batch in self.batches for row in batch.rows if row]

    def settle(self, ids: Sequence[int], logprobs: Sequence[float]) -> None:
        """Give the rows of the last pass their tokens; then tidy up."""
        triples = zip(self.sampled, ids, logprobs, strict=True)
        ended = {row.place for row, token, logprob in triples if row and not self.queue.take_token(row, token, logprob)}
        for batch in self.batches if ended else ():
            batch.rows = [None if row and row.place in ended else row for row in batch.rows]
        self.sampled = []
        self._tidy()

    def forward(self) -> Tensor | None:
        """One pass: of the prompts that take free places, else of a new token a row; final states [T, H] (last stage) of `sampled`."""
        rows = self._admitted()
        return self._read_prompts(rows) if rows else self._step()

    def _read_prompts(self, rows: list[Row]) -> Tensor | None:
        """The prompts of new rows, each distinct one once if equal ones are side by side."""
        texts, of_row = _distinct(rows)
        device = torch.device(torch.cuda.current_device())
        longest = max(map(len, texts))
        ids_BS = torch.tensor([[*text, *[0] * (longest - len(text))] for text in texts], device=device)
        positions_T = torch.arange(longest, device=device).repeat(len(texts))
        block = CacheBlock([row.length for row in rows], self._room(rows, longest), device, self.ledger)
        shared = None if len(texts) == len(rows) else torch.tensor(of_row, device=device)
        attention = PromptAttention(len(texts), block, shared, self.decoder.model.config.softmax_scale)
        hidden_TH = self.decoder.forward(ids_BS.flatten(), positions_T, attention)
        self.sampled = list(rows)
        self.batches.append(Batch(block, self.sampled))
        last_T = torch.tensor([text * longest + len(texts[text]) - 1 for text in of_row], device=device)
        return None if hidden_TH is None else hidden_TH[last_T]

    def _step(self) -> Tensor | None:
        blocks = [batch.block for batch in self.batches]
        self.sampled = [row for batch in self.batches for row in batch.rows]
        ids_T = torch.tensor([row.ids[-1] if row else 0 for row in self.sampled], device=blocks[0].device)
        positions_T = torch.cat([block.positions() for block in blocks]) if len(blocks) > 1 else blocks[0].positions()
        hidden_TH = self.decoder.forward(ids_T, positions_T, StepAttention(blocks, self.decoder.model.config.softmax_scale))
        for block in blocks:
            block.advance()
        return hidden_TH

    def _admitted(self) -> list[Row]:
        """The next prompts that have places and memory, once it is worth a pass."""
        if not self.queue.waiting:
            return []
        live = self.live
        free = min(self.places - sum(len(batch.rows) for batch in self.batches), len(self.queue.waiting))
        if free < min(max(1, self.places // _ADMIT), len(self.queue.waiting)) and live:
            return []
        expected = sum(self.queue.expected_length(row) for row in live)
        rows: list[Row] = []
        texts = 0  # distinct ones, which are what a pass computes
        while len(rows) < free:
            more = [*rows, self.queue.waiting[0]]
            texts += not rows or _text(more[-1]) != _text(rows[-1])
            longest = max(row.length for row in more)
            expected += self.queue.expected_length(more[-1])
            needed = max(expected, self._held() + len(more) * (longest + self._room(more, longest)))
            fits = texts * longest <= PROMPT_TOKENS and (self.budget is None or needed <= self.budget)
            if not fits and (rows or live):
                break
            self.queue.waiting.popleft()
            rows = more
        return rows

    def _held(self) -> int:
        """Tokens for which there is memory."""
        return sum(batch.block.capacity * len(batch.rows) for batch in self.batches)

    def _tidy(self) -> None:
        """Dead rows go, full blocks grow, and blocks whose rows are about as long become one."""
        for batch in list(self.batches):
            live, block = batch.live, batch.block
            if batch not in self.batches:  # it gave up its memory for one before it
                continue
            if not live:
                block.free()
                self.batches.remove(batch)
            elif len(batch.rows) - len(live) > len(batch.rows) // _SLACK or block.width == block.capacity:
                self._move([batch])
        self.batches.sort(key=lambda batch: -batch.block.width)
        while len(self.batches) > 1 and self._join():
            pass

    def _join(self) -> bool:
        """Make one of the two neighbours that cost the least padding; whether that was worth it."""
        tokens = sum(batch.block.tokens for batch in self.batches)
        padding = sum(batch.block.width * len(batch.rows) for batch in self.batches) - tokens
        neighbours = list(pairwise(self.batches))
        extra = [(long.block.width - short.block.width) * len(short.rows) for long, short in neighbours]
        least = min(range(len(extra)), key=extra.__getitem__)
        worth = padding + extra[least] <= _PADDING * tokens or len(self.batches) > _BLOCKS
        return worth and self._move(list(neighbours[least]))

    def _move(self, batches: list[Batch]) -> bool:
        """Live rows of neighbouring batches into one block with room to grow; whether that was done.

        Where memory lacks for that, several stay as they are. For one, the shortest of the other rows, then half of its own, give up their
        place: they wait at the head of the queue and are read again.
        """
        while not self._fits(batches):
            if len(batches) > 1:
                return False
            others = [batch for batch in self.batches if batch is not batches[0]]
            if others:
                shortest = min(others, key=lambda batch: batch.block.width)
                self._give_up(shortest, shortest.live)
                shortest.block.free()
                self.batches.remove(shortest)
            else:
                live = batches[0].live
                self._give_up(batches[0], live[(len(live) + 1) // 2 :])
        rows = [row for batch in batches for row in batch.rows if row]
        block = CacheBlock.joined([(batch.block, batch.live) for batch in batches], self._room(rows, max(b.block.width for b in batches)))
        at = self.batches.index(batches[0])
        self.batches = [batch for batch in self.batches if batch not in batches]
        self.batches.insert(at, Batch(block, list(rows)))
        return True

    def _give_up(self, batch: Batch, places: list[int]) -> None:
        self.queue.waiting.extendleft(row for place in reversed(places) if (row := batch.rows[place]))
        batch.rows = [None if place in places else row for place, row in enumerate(batch.rows)]

    def _room(self, rows: Sequence[Row], width: int) -> int:
        """Columns to grow by: a share of the width, no more than the rows can fill."""
        return min(max(_LEAST, width // _SLACK), max(self.queue.sampling.max_new_tokens - len(row.ids) for row in rows))

    def _fits(self, batches: Sequence[Batch]) -> bool:
        """Whether there is memory for one block of the live rows in place of these; one row alone always has it."""
        rows = [row for batch in batches for row in batch.rows if row]
        if self.budget is None or len(rows) == len(self.live) == 1:
            return True
        width = max(batch.block.width for batch in batches)
        new = (width + self._room(rows, width)) * len(rows)
        old = sum(batch.block.capacity * len(batch.rows) for batch in batches)
        return self._held() - old + new <= self.budget


def _text(row: Row) -> list[int]:
    return [*row.prompt, *row.ids]


def _distinct(rows: list[Row]) -> tuple[list[list[int]], list[int]]:
    """Texts so far, of equal neighbours one, and for each row the number of its text."""
    texts: list[list[int]] = []
    of_row: list[int] = []
    for row in rows:
        text = _text(row)
        if not texts or texts[-1] != text:
            texts.append(text)
        of_row.append(len(texts) - 1)
    return texts, of_row
