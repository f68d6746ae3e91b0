#ifndef SLUICE_ROUTERS_ATTENTION_DHSA_DHSA_REFERENCE_H_
#define SLUICE_ROUTERS_ATTENTION_DHSA_DHSA_REFERENCE_H_
// DHSA in plain loops and double precision, its chunks found anew for every list.
#include "sluice/routers/attention/common/reference.h"

SLUICE_BEGIN_NAMESPACE
namespace attention {
struct DhsaReference {
  char boundaries = 'c';  // cosine, fixed or given, by the first letter
  std::vector<int64_t> at;
  int64_t chunk = 32;
  int64_t window = 4;
  int64_t radius = 8;
  double novelty = 0;
  int64_t longest = 64;
  int64_t budget = 2048;
  int64_t block = 128;
  int64_t global = 128;
  int64_t local = 128;
  int64_t dense_tail = 64;
  int64_t least_queries = 16;
  bool all_heads = true;

  struct Chunk {
    int64_t begin = 0;
    int64_t end = 0;
  };

  // The mean of keys [begin, end) over heads [from, to).
  static reference::Vector MeanKey(const KvView& k, int64_t begin, int64_t end, int64_t from,
                                   int64_t to) {
    std::vector<reference::Vector> keys;
    for (int64_t kv = from; kv < to; ++kv) {
      for (int64_t s = begin; s < end; ++s) keys.push_back(reference::Key(k, s, kv));
    }
    return reference::MeanOf(keys);
  }

  // Of the gap before each key, by the first n; NaN where there is none.
  reference::Vector Novelty(const KvView& k, int64_t n) const {
    reference::Vector novel(n, NAN);
    for (int64_t gap = window; gap + window <= n; ++gap) {
      const reference::Vector left = MeanKey(k, gap - window, gap, 0, k.heads);
      const reference::Vector right = MeanKey(k, gap, gap + window, 0, k.heads);
      const double lengths = reference::Product(left, left) * reference::Product(right, right);
      novel[gap] = lengths == 0 ? 0 : 1 - reference::Product(left, right) / std::sqrt(lengths);
    }
    return novel;
  }
  bool Turns(const reference::Vector& novel, int64_t gap) const {
    if (!(novel[gap] >= novelty)) return false;
    for (int64_t s = std::max<int64_t>(0, gap - radius); s <= gap + radius; ++s) {
      if (novel[s] > novel[gap] || (s < gap && novel[s] == novel[gap])) return false;
    }
    return true;
  }

  // What the first n keys say of chunks, the last being all that they leave open.
  std::vector<Chunk> Chunks(const KvView& k, int64_t n) const {
    std::vector<Chunk> chunks = {{0, 0}};
    const reference::Vector novel = boundaries == 'c' ? Novelty(k, n) : reference::Vector(n);
    const int64_t lag = boundaries == 'c' ? radius + window : 0;
    for (int64_t s = 1; s + lag <= n; ++s) {
      const int64_t begin = chunks.back().begin;
      bool ends = s - begin == (boundaries == 'c' ? longest : chunk);
      if (boundaries == 'c') ends = ends || Turns(novel, s);
      if (boundaries == 'g') {
        if (at.back() > begin) ends = false;
        for (int64_t given : at) ends = ends || given == s;
      }
      if (!ends) continue;
      chunks.back().end = s;
      chunks.push_back({s, 0});
    }
    chunks.back().end = n;
    if (chunks.back().begin == n) chunks.pop_back();
    return chunks;
  }

  // The tokens of queries [from, to), of heads [head, end) and their keys' heads [kv, kv_end).
  std::vector<bool> Tokens(const AttentionInputs& in, int64_t from, int64_t to, int64_t head,
                           int64_t head_end, int64_t kv, int64_t kv_end) const {
    const int64_t n = in.q_begin + to;
    const int64_t prompt = std::max(in.prompt_end, in.k.rows);
    if (to - from < least_queries || n > prompt - dense_tail) return std::vector<bool>(n, true);
    std::vector<bool> kept(n);
    int64_t room = budget;
    for (int64_t s = 0; s < n; ++s) {
      kept[s] = s < global || s >= n - local || s >= in.q_begin + from;
      room -= kept[s];
    }
    std::vector<reference::Vector> queries;
    for (int64_t h = head; h < head_end; ++h) {
      for (int64_t i = from; i < to; ++i) queries.push_back(reference::Query(in.q, i, h, in.scale));
    }
    const reference::Vector query = reference::MeanOf(queries);
    const std::vector<Chunk> chunks = Chunks(in.k, n);
    reference::Vector score;
    for (const Chunk& c : chunks) {
      const double root = std::sqrt(static_cast<double>(c.end - c.begin));
      score.push_back(root * reference::Product(query, MeanKey(in.k, c.begin, c.end, kv, kv_end)));
    }
    for (int64_t c : reference::Ranked(score)) {
      for (int64_t s = chunks[c].begin; s < chunks[c].end; ++s) {
        if (kept[s] || room <= 0) continue;
        kept[s] = true;
        --room;
      }
    }
    return kept;
  }

  reference::Lists Lists(const AttentionInputs& in) const {
    reference::Lists lists(in.q.rows * in.q.heads);
    const int64_t group = in.q.heads / in.k.heads;
    for (int64_t from = 0; from < in.q.rows; from += block) {
      const int64_t to = std::min(in.q.rows, from + block);
      for (int64_t head = 0; head < in.q.heads; ++head) {
        const int64_t kv = head / group;
        const std::vector<bool> kept =
            all_heads ? Tokens(in, from, to, 0, in.q.heads, 0, in.k.heads)
                      : Tokens(in, from, to, kv * group, (kv + 1) * group, kv, kv + 1);
        for (int64_t i = from; i < to; ++i) {
          for (int64_t s = 0; s <= in.q_begin + i; ++s) {
            if (kept[s]) lists[i * in.q.heads + head].push_back(static_cast<uint32_t>(s));
          }
        }
      }
    }
    return lists;
  }
};
}  // namespace attention
SLUICE_END_NAMESPACE
#endif  // SLUICE_ROUTERS_ATTENTION_DHSA_DHSA_REFERENCE_H_
