#ifndef SLUICE_ROUTERS_ATTENTION_SPATTEN_SPATTEN_REFERENCE_H_
#define SLUICE_ROUTERS_ATTENTION_SPATTEN_SPATTEN_REFERENCE_H_
// SpAtten's cascades over a stack of layers, in plain loops over doubles, attention included.
#include <cmath>
#include <vector>

#include "sluice/api/attention_router.h"

SLUICE_BEGIN_NAMESPACE
struct SpattenReference {
  std::vector<double> keep, keep_heads;  // by layer
  bool carry_all = false;

  std::vector<double> importance, head_importance;
  std::vector<bool> alive;  // tokens, from call to call

  // The lists [layer][query * heads + head] of one call. `layers`: its inputs, by layer.
  std::vector<std::vector<std::vector<uint32_t>>> Feed(const std::vector<AttentionInputs>& layers) {
    const AttentionInputs& first = layers[0];
    const int64_t heads = first.q.heads;
    importance.resize(first.kv_len(), 0);
    head_importance.resize(heads, 0);
    if (carry_all) alive.assign(alive.size(), true);
    alive.resize(first.kv_len(), true);
    std::vector<bool> head_alive(heads, true);
    std::vector<std::vector<std::vector<uint32_t>>> lists(layers.size());
    for (size_t l = 0; l < layers.size(); ++l) {
      lists[l].resize(first.q.rows * heads);
      for (int64_t i = 0; i < first.q.rows; ++i) {
        for (int64_t h = 0; h < heads; ++h) {
          if (!head_alive[h]) continue;
          std::vector<uint32_t>& list = lists[l][i * heads + h];
          const int64_t own = first.q_begin + i;
          for (int64_t key = 0; key <= own; ++key) {
            if (alive[key] || key == own) list.push_back(static_cast<uint32_t>(key));
          }
        }
      }
      Learn(layers[l], lists[l]);
      Keep(keep[l], importance, alive);
      Keep(keep_heads[l], head_importance, head_alive);
    }
    return lists;
  }
  void Truncate(int64_t keys) {
    importance.resize(keys);
    alive.resize(keys);
  }

 private:
  void Learn(const AttentionInputs& in, const std::vector<std::vector<uint32_t>>& lists) {
    const int64_t heads = in.q.heads;
    const int64_t group = heads / in.k.heads;
    std::vector<double> token(importance.size(), 0);
    for (int64_t i = 0; i < in.q.rows; ++i) {
      for (int64_t h = 0; h < heads; ++h) {
        const std::vector<uint32_t>& list = lists[i * heads + h];
        std::vector<double> prob;
        double sum = 0;
        for (uint32_t key : list) {
          double logit = 0;
          for (int64_t x = 0; x < in.q.dim; ++x)
            logit += static_cast<double>(in.q.at(i, h)[x]) * in.k.Get(key, h / group, x);
          prob.push_back(std::exp(logit * in.scale));
          sum += prob.back();
        }
        double norm = 0;
        for (int64_t x = 0; x < in.v.dim; ++x) {
          double o = 0;
          for (size_t j = 0; j < list.size(); ++j)
            o += prob[j] / sum * in.v.Get(list[j], h / group, x);
          norm += std::fabs(o);
        }
        head_importance[h] += norm;
        for (size_t j = 0; j < list.size(); ++j) token[list[j]] += prob[j] / sum;
      }
    }
    for (size_t key = 0; key < token.size(); ++key) importance[key] += token[key];
  }
  // One after another, the best of those alive; the first of equals.
  static void Keep(double share, const std::vector<double>& score, std::vector<bool>& alive) {
    const auto most = static_cast<int64_t>(share * static_cast<double>(score.size()) + 1e-9);
    std::vector<bool> kept(score.size(), false);
    for (int64_t n = 0; n < std::max<int64_t>(1, most); ++n) {
      int64_t best = -1;
      for (int64_t i = 0; i < std::ssize(score); ++i) {
        if (alive[i] && !kept[i] && (best < 0 || score[i] > score[best])) best = i;
      }
      if (best >= 0) kept[best] = true;
    }
    alive = kept;
  }
};
SLUICE_END_NAMESPACE
#endif  // SLUICE_ROUTERS_ATTENTION_SPATTEN_SPATTEN_REFERENCE_H_
