#ifndef SLUICE_ROUTERS_ATTENTION_INFINITE_HIP_INFINITE_HIP_REFERENCE_H_
#define SLUICE_ROUTERS_ATTENTION_INFINITE_HIP_INFINITE_HIP_REFERENCE_H_
// InfiniteHiP's stages in plain loops and double precision.
#include "sluice/routers/attention/common/reference.h"

SLUICE_BEGIN_NAMESPACE
namespace attention {
struct InfiniteHipReference {
  struct Stage {
    int64_t chunk = 0;
    int64_t keep = 0;
    int64_t stride = 0;
    int64_t refresh = 1;
  };
  struct Span {
    int64_t begin = 0;
    int64_t end = 0;
  };
  std::vector<Stage> stages = {{256, 32768, 4, 32}, {32, 8192, 4, 16}, {8, 2048, 1, 8}};
  int64_t block_q = 64;
  int64_t sink = 256;
  int64_t window = 1024;
  int64_t shared = 0;  // query heads that share a list; 0: all

  // The largest product of a key with the means of `stride` neighbouring queries.
  static double Product(const AttentionInputs& in, int64_t from, int64_t to, int64_t head,
                        int64_t stride, int64_t key) {
    const int64_t kv = head / (in.q.heads / in.k.heads);
    double most = -HUGE_VAL;
    for (int64_t i = from; i < to; i += stride) {
      std::vector<reference::Vector> queries;
      for (int64_t j = i; j < std::min(to, i + stride); ++j)
        queries.push_back(reference::Query(in.q, j, head, 1));
      const double x =
          reference::Product(reference::MeanOf(queries), reference::Key(in.k, key, kv));
      if (x > most) most = x;
    }
    return most;
  }
  static double Score(const AttentionInputs& in, int64_t from, int64_t to, int64_t head,
                      int64_t stride, Span span) {
    const auto centre = [&](Span s) {
      return Product(in, from, to, head, stride, (s.begin + s.end) / 2);
    };
    double best = centre(span);
    while (span.end - span.begin > 1) {
      const int64_t middle = (span.begin + span.end) / 2;
      const Span left = {span.begin, middle};
      const Span right = {middle, span.end};
      const double of_left = centre(left);
      const double of_right = centre(right);
      best = std::max({best, of_left, of_right});
      span = of_left >= of_right ? left : right;
    }
    return best;
  }
  // What a stage keeps of some spans of keys.
  std::vector<Span> Prune(const AttentionInputs& in, int64_t from, int64_t to, int64_t list,
                          const Stage& stage, const std::vector<Span>& live) const {
    const int64_t heads = shared > 0 ? shared : in.q.heads;
    std::vector<Span> chunks;
    for (const Span& s : live) {
      for (int64_t at = s.begin; at < s.end; at += stage.chunk)
        chunks.push_back({at, std::min(s.end, at + stage.chunk)});
    }
    reference::Vector score;
    for (const Span& chunk : chunks) {
      double most = -HUGE_VAL;
      for (int64_t head = list * heads; head < (list + 1) * heads; ++head)
        most = std::max(most, Score(in, from, to, head, stage.stride, chunk));
      score.push_back(most);
    }
    std::vector<Span> kept;
    for (int64_t c : reference::Best(score, stage.keep / stage.chunk)) kept.push_back(chunks[c]);
    return kept;
  }
  int64_t HistoryEnd(int64_t position) const {
    return std::min(position + 1, std::max(sink, position - window + 1));
  }
  std::vector<uint32_t> Keys(int64_t position, int64_t end, const std::vector<Span>& kept) const {
    std::vector<uint32_t> keys;
    for (int64_t s = 0; s <= position; ++s) {
      bool keep = s < sink || s >= end;
      for (const Span& span : kept) keep = keep || (s >= span.begin && s < span.end);
      if (keep) keys.push_back(static_cast<uint32_t>(s));
    }
    return keys;
  }

  reference::Lists Lists(const AttentionInputs& in) const {
    reference::Lists lists(in.q.rows * in.q.heads);
    const int64_t heads = shared > 0 ? shared : in.q.heads;
    for (int64_t list = 0; list < in.q.heads / heads; ++list) {
      for (int64_t from = 0; from < in.q.rows; from += block_q) {
        const int64_t to = std::min(in.q.rows, from + block_q);
        const int64_t end = HistoryEnd(in.q_begin + from);
        std::vector<Span> live;
        if (end > sink) live.push_back({sink, end});
        for (const Stage& stage : stages) live = Prune(in, from, to, list, stage, live);
        for (int64_t i = from; i < to; ++i) {
          for (int64_t head = list * heads; head < (list + 1) * heads; ++head)
            lists[i * in.q.heads + head] = Keys(in.q_begin + i, end, live);
        }
      }
    }
    return lists;
  }

  // What decode steps remember of each other, list by list.
  struct Memory {
    int64_t step = 0;  // of a sequence of steps: stage s is planned at multiples of its refresh
    int64_t end = 0;
    std::vector<std::vector<std::vector<Span>>> kept;  // [lists][stages]
  };
  // The lists of one decode step; refreshes divide the ones before them.
  reference::Lists Step(const AttentionInputs& in, Memory& memory) const {
    const int64_t heads = shared > 0 ? shared : in.q.heads;
    reference::Lists lists(in.q.heads);
    memory.kept.resize(in.q.heads / heads, std::vector<std::vector<Span>>(stages.size()));
    if (memory.step % stages[0].refresh == 0) memory.end = HistoryEnd(in.q_begin);
    for (int64_t list = 0; list < in.q.heads / heads; ++list) {
      std::vector<Span> live;
      if (memory.end > sink) live.push_back({sink, memory.end});
      for (size_t s = 0; s < stages.size(); ++s) {
        std::vector<Span>& kept = memory.kept[list][s];
        if (memory.step % stages[s].refresh == 0) kept = Prune(in, 0, 1, list, stages[s], live);
        live = kept;
      }
      for (int64_t head = list * heads; head < (list + 1) * heads; ++head)
        lists[head] = Keys(in.q_begin, memory.end, live);
    }
    ++memory.step;
    return lists;
  }
};
}  // namespace attention
SLUICE_END_NAMESPACE
#endif  // SLUICE_ROUTERS_ATTENTION_INFINITE_HIP_INFINITE_HIP_REFERENCE_H_
