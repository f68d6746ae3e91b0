"""Training text for routers on the bundled model: plain documentation, and documentation with planted facts that are
asked about at the end. Documents the bundled model was tested on stay out of training here too."""
import lzma

import numpy as np

import facts


class Tasks:
    def __init__(self, corpus, tokenizer, megabytes, seed):
        with lzma.open(corpus) as f:
            text = f.read(megabytes << 20).decode(errors="ignore")
        documents = text.split("\0")[:-1]
        train, held = [], []
        for i, e in enumerate(tokenizer.encode_batch(documents)):
            (held if i % 50 == 7 else train).append(np.array(e.ids + [0], np.int64))
        order = np.random.default_rng(seed).permutation(len(train))
        self.streams = {"train": np.concatenate([train[i] for i in order]), "held": np.concatenate(held)}
        self.tokenizer = tokenizer

    def ids(self, text):
        return np.array(self.tokenizer.encode(text).ids, np.int64)

    def plain(self, rng, n, split="train"):
        s = self.streams[split]
        at = rng.integers(0, len(s) - n)
        return s[at:at + n]

    def planted(self, rng, n, split="train", count=None, asked=None):
        """(ids [n], answer [n] bool, prompt): `count` facts at random depths, the last `asked` of them asked at the
        end. `prompt` is the length up to the first answer, all that a decision may see; without questions it is n."""
        count = int(rng.integers(4, 13)) if count is None else count
        asked = int(rng.integers(1, count + 1)) if asked is None else asked
        pairs = facts.draw(rng, count)
        order = rng.permutation(count)
        tail, mark = [], []
        for i in order[:asked]:
            q, a = self.ids(facts.question(pairs[i][0])), self.ids(facts.answer(pairs[i][1]))
            tail += [q, a]
            mark += [np.zeros(len(q), bool), np.ones(len(a), bool)]
        said = [self.ids(facts.statement(*p)) for p in pairs]
        used = sum(map(len, tail)) + sum(map(len, said))
        text = self.plain(rng, n - used, split)
        cuts = np.sort(rng.integers(0, len(text) + 1, count))
        out, last = [], 0
        for cut, s in zip(cuts, said):
            out += [text[last:cut], s]
            last = cut
        out = np.concatenate(out + [text[last:]] + tail)
        answer = np.concatenate([np.zeros(n - sum(map(len, mark)), bool)] + mark)
        return out, answer, n - sum(map(len, tail[1:]))
