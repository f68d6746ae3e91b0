"""Training text for routers on the bundled model: plain documentation, and documentation with planted facts that are
asked about at the end. Documents the bundled model was tested on stay out of training here too: by their place in the
corpus, and for a corpus of other documents by the text that they share with token files (`without`)."""
import lzma

import numpy as np

import facts


RUN = 24  # tokens


def runs(ids, step):
    """Every RUN tokens in a row from each step-th place, as bytes."""
    x = np.asarray(ids, np.uint16)
    return [x[i:i + RUN].tobytes() for i in range(0, len(x) - RUN + 1, step)]


def shares_text(ids, seen):
    """Whether a tenth of a document's runs of tokens are among those seen."""
    own = runs(ids, RUN)
    return sum(r in seen for r in own) > 0.1 * len(own)


class Tasks:
    def __init__(self, corpus, tokenizer, megabytes, seed, without=(), spaces=False):
        """without: files of little-endian 16 bit token ids that no document may share text with; spaces: facts stand
        between spaces instead of line breaks."""
        with lzma.open(corpus) as f:
            text = f.read(megabytes << 20).decode(errors="ignore")
        documents = text.split("\0")[:-1]
        seen = {r for name in without for r in runs(np.fromfile(name, "<u2"), 1)}
        train, held, self.left_out = [], [], 0
        for i, e in enumerate(tokenizer.encode_batch(documents)):
            if seen and shares_text(e.ids, seen):
                self.left_out += 1
                continue
            (held if i % 50 == 7 else train).append(np.array(e.ids + [0], np.int64))
        order = np.random.default_rng(seed).permutation(len(train))
        self.streams = {"train": np.concatenate([train[i] for i in order]), "held": np.concatenate(held)}
        self.tokenizer, self.spaces = tokenizer, spaces

    def ids(self, text):
        return np.array(self.tokenizer.encode(text).ids, np.int64)

    def fact(self, text):
        return self.ids(text.replace("\n", " ") if self.spaces else text)

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
            q, a = self.fact(facts.question(pairs[i][0])), self.fact(facts.answer(pairs[i][1]))
            tail += [q, a]
            mark += [np.zeros(len(q), bool), np.ones(len(a), bool)]
        said = [self.fact(facts.statement(*p)) for p in pairs]
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
