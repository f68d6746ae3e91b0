#ifndef SLUICE_ROUTERS_ATTENTION_FLEX_PREFILL_FLEX_PREFILL_REFERENCE_H_
#define SLUICE_ROUTERS_ATTENTION_FLEX_PREFILL_FLEX_PREFILL_REFERENCE_H_
// FlexPrefill in plain loops and double precision.
#include "sluice/routers/attention/common/vertical_slash_reference.h"

SLUICE_BEGIN_NAMESPACE
namespace attention {
struct FlexPrefillReference {
  int64_t block = 128;
  double tau = 0.1;
  double gamma = 0.9;
  int64_t min_budget = 512;
  int64_t sink = 4;
  int64_t local = 64;
  int64_t last = 128;
  int64_t segment = 512;
  bool joint = false;
  int64_t least_queries = 16;
  static constexpr int64_t kTile = 64;

  // The mean of queries [from, to) times the means of the blocks that the last of them sees.
  reference::Vector BlockScores(const AttentionInputs& in, int64_t from, int64_t to,
                                int64_t head) const {
    std::vector<reference::Vector> queries;
    for (int64_t i = from; i < to; ++i)
      queries.push_back(reference::Query(in.q, i, head, in.scale));
    const reference::Vector query = reference::MeanOf(queries);
    const int64_t kv = head / (in.q.heads / in.k.heads);
    const int64_t end = in.q_begin + to;
    reference::Vector score;
    for (int64_t b = 0; b * block < end; ++b)
      score.push_back(reference::Product(query, reference::MeanKey(in.k, b, block, end, kv)));
    return score;
  }

  // Of the segment whose last query is to - 1.
  double Divergence(const AttentionInputs& in, int64_t from, int64_t to, int64_t head) const {
    const reference::Vector guess = reference::Softmax(BlockScores(in, from, to, head));
    const reference::LineSums sums(in, from, to, head);
    reference::Vector truth(guess.size());
    double total = 0;
    for (int64_t s = 0; s < std::ssize(sums.column); ++s) {
      truth[s / block] += sums.column[s];
      total += sums.column[s];
    }
    double sum = 0;
    for (size_t b = 0; b < guess.size(); ++b) {
      const double p = truth[b] / total;
      const double e = guess[b];
      const double middle = (p + e) / 2;
      if (p != 0) sum += p * std::log(p / middle) / 2;
      if (e != 0) sum += e * std::log(e / middle) / 2;
    }
    return std::sqrt(sum < 0 ? 0 : sum);
  }

  // The blocks of each query block of a segment.
  std::vector<std::vector<int64_t>> Blocks(const AttentionInputs& in, int64_t from, int64_t to,
                                           int64_t head) const {
    std::vector<reference::Vector> rows;
    reference::Vector all;
    for (int64_t at = from; at < to; at += block) {
      const reference::Vector score = BlockScores(in, at, std::min(to, at + block), head);
      rows.push_back(joint ? score : reference::Softmax(score));
      all.insert(all.end(), rows.back().begin(), rows.back().end());
    }
    if (joint) all = reference::Softmax(all);
    std::vector<std::vector<int64_t>> kept(rows.size());
    for (int64_t pair : reference::Fewest(all, gamma, 0)) {
      size_t r = 0;
      int64_t before = 0;
      while (pair >= before + std::ssize(rows[r])) before += std::ssize(rows[r++]);
      kept[r].push_back(pair - before);
    }
    const int64_t least = (min_budget + block - 1) / block;
    int64_t before = 0;
    for (size_t r = 0; r < rows.size(); before += std::ssize(rows[r++])) {
      const reference::Vector row(all.begin() + before, all.begin() + before + std::ssize(rows[r]));
      if (std::ssize(kept[r]) < least) kept[r] = reference::Best(row, least);
    }
    return kept;
  }

  // What the tile of queries [from, to) of a segment sees.
  reference::Lists Lists(const AttentionInputs& in) const {
    reference::Lists lists(in.q.rows * in.q.heads);
    for (int64_t head = 0; head < in.q.heads; ++head) {
      for (int64_t from = 0; from < in.q.rows; from += segment)
        Segment(in, from, std::min(in.q.rows, from + segment), head, lists);
    }
    return lists;
  }

 private:
  void Segment(const AttentionInputs& in, int64_t from, int64_t to, int64_t head,
               reference::Lists& lists) const {
    const bool dense = to - from < least_queries;
    const int64_t looked = std::max(from, to - last);
    const bool by_block = !dense && Divergence(in, looked, to, head) < tau;
    std::vector<std::vector<int64_t>> blocks;
    std::vector<int64_t> columns;
    std::vector<int64_t> distances;
    if (by_block) {
      blocks = Blocks(in, from, to, head);
    } else if (!dense) {
      const reference::LineSums sums(in, looked, to, head);
      columns = reference::Fewest(sums.column, gamma, min_budget);
      distances = reference::Fewest(sums.distance, gamma, min_budget, /*last_first=*/true);
    }
    for (int64_t at = from; at < to; at += kTile) {
      const int64_t first = in.q_begin + at;
      const int64_t end = std::min(to, at + kTile);
      reference::Mask mask =
          reference::LinesOfTile(columns, distances, first, in.q_begin + end - 1);
      for (int64_t s = 0; s < std::ssize(mask) && by_block; ++s) {
        for (int64_t b : blocks[(at - from) / block]) mask[s] = mask[s] || s / block == b;
      }
      reference::Guard(mask, dense ? in.k.rows : sink, local, first);
      for (int64_t i = at; i < end; ++i)
        lists[i * in.q.heads + head] = reference::KeysUpTo(mask, in.q_begin + i);
    }
  }
};
}  // namespace attention
SLUICE_END_NAMESPACE
#endif  // SLUICE_ROUTERS_ATTENTION_FLEX_PREFILL_FLEX_PREFILL_REFERENCE_H_
