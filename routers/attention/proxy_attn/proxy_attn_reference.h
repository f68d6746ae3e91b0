#ifndef SLUICE_ROUTERS_ATTENTION_PROXY_ATTN_PROXY_ATTN_REFERENCE_H_
#define SLUICE_ROUTERS_ATTENTION_PROXY_ATTN_PROXY_ATTN_REFERENCE_H_
// ProxyAttn in plain loops and double precision.
#include "sluice/routers/attention/common/reference.h"

SLUICE_BEGIN_NAMESPACE
namespace attention {
struct ProxyAttnReference {
  int64_t groups = 1;
  int64_t block = 128;
  int64_t tile = 128;
  int64_t stride = 4;
  double gamma = 0.95;
  int64_t min_budget = 2048;
  bool floor_of_head = false;
  int64_t sink = 1;
  int64_t local = 1;
  bool count_forced = false;
  int64_t least_queries = 16;

  // Probabilities over the keys 0, every, 2 * every, ... up to `last`, for the mean of some query
  // heads and the mean of some KV heads.
  static reference::Vector Probabilities(const AttentionInputs& in, int64_t i, int64_t head_begin,
                                         int64_t head_end, int64_t kv_begin, int64_t kv_end,
                                         int64_t every) {
    std::vector<reference::Vector> heads;
    for (int64_t h = head_begin; h < head_end; ++h)
      heads.push_back(reference::Query(in.q, i, h, in.scale));
    const reference::Vector q = reference::MeanOf(heads);
    reference::Vector logit;
    for (int64_t s = 0; s <= in.q_begin + i; s += every) {
      std::vector<reference::Vector> keys;
      for (int64_t kv = kv_begin; kv < kv_end; ++kv) keys.push_back(reference::Key(in.k, s, kv));
      logit.push_back(reference::Product(q, reference::MeanOf(keys)));
    }
    return reference::Softmax(logit);
  }

  // How many blocks the last queries of a head need.
  int64_t Needed(const AttentionInputs& in, int64_t head) const {
    const int64_t kv = head / (in.q.heads / in.k.heads);
    reference::Vector mass((in.k.rows + block - 1) / block);
    for (int64_t i = std::max<int64_t>(0, in.q.rows - tile); i < in.q.rows; ++i) {
      const reference::Vector p = Probabilities(in, i, head, head + 1, kv, kv + 1, 1);
      if (std::isnan(p[0])) continue;
      for (int64_t s = 0; s < std::ssize(p); ++s) mass[s / block] += p[s];
    }
    double total = 0;
    for (double m : mass) total += m;
    int64_t needed = 0;
    double held = 0;
    for (int64_t b : reference::Ranked(mass)) {
      if (gamma < 1 && held >= gamma * total) break;
      held += mass[b];
      ++needed;
    }
    if (!floor_of_head) return needed;
    const int64_t least = (min_budget + block - 1) / block;
    return std::min<int64_t>(std::ssize(mass), std::max(needed, least));
  }

  // The blocks that are not forced, by falling rank.
  std::vector<int64_t> Ranking(const AttentionInputs& in, int64_t from, int64_t to,
                               int64_t proxy) const {
    const int64_t heads = in.q.heads / groups;
    const int64_t kv_heads = in.k.heads / groups;
    const int64_t own = (in.q_begin + from) / block;
    reference::Vector score((in.q_begin + to - 1) / block + 1, -HUGE_VAL);
    for (int64_t i = from; i < to; i += stride) {
      const reference::Vector p = Probabilities(in, i, proxy * heads, (proxy + 1) * heads,
                                                proxy * kv_heads, (proxy + 1) * kv_heads, stride);
      for (int64_t j = 0; j < std::ssize(p); ++j) {
        double& best = score[j * stride / block];
        if (p[j] > best) best = p[j];
      }
    }
    std::vector<int64_t> ranking;
    for (int64_t b : reference::Ranked(score)) {
      if (b >= sink && b <= own - local) ranking.push_back(b);
    }
    return ranking;
  }

  std::vector<int64_t> Blocks(const AttentionInputs& in, int64_t from, int64_t to, int64_t head,
                              int64_t needed) const {
    const int64_t own = (in.q_begin + from) / block;
    const int64_t visible = (in.q_begin + to - 1) / block + 1;
    const int64_t all = (in.k.rows + block - 1) / block;
    std::vector<int64_t> blocks;
    for (int64_t b = 0; b < visible; ++b) {
      if (b < sink || b > own - local) blocks.push_back(b);
    }
    int64_t room = (needed * visible + all - 1) / all;
    if (!floor_of_head) room = std::max(room, (min_budget + block - 1) / block);
    if (count_forced) room -= std::ssize(blocks);
    for (int64_t b : Ranking(in, from, to, head / (in.q.heads / groups))) {
      if (room-- <= 0) break;
      blocks.push_back(b);
    }
    std::sort(blocks.begin(), blocks.end());
    return blocks;
  }

  reference::Lists Lists(const AttentionInputs& in) const {
    reference::Lists lists(in.q.rows * in.q.heads);
    const bool dense = in.q.rows < least_queries;
    for (int64_t head = 0; head < in.q.heads; ++head) {
      const int64_t needed = dense ? 0 : Needed(in, head);
      for (int64_t from = 0; from < in.q.rows; from += tile) {
        const int64_t to = std::min(in.q.rows, from + tile);
        std::vector<int64_t> blocks;
        if (!dense) blocks = Blocks(in, from, to, head, needed);
        for (int64_t b = 0; dense && b * block < in.q_begin + to; ++b) blocks.push_back(b);
        for (int64_t i = from; i < to; ++i)
          lists[i * in.q.heads + head] = reference::KeysOf(blocks, block, in.q_begin + i);
      }
    }
    return lists;
  }
};
}  // namespace attention
SLUICE_END_NAMESPACE
#endif  // SLUICE_ROUTERS_ATTENTION_PROXY_ATTN_PROXY_ATTN_REFERENCE_H_
