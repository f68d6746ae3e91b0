#ifndef SLUICE_ROUTERS_ATTENTION_PBS_ATTN_PBS_ATTN_REFERENCE_H_
#define SLUICE_ROUTERS_ATTENTION_PBS_ATTN_PBS_ATTN_REFERENCE_H_
// PBS-Attn in plain loops and double precision.
#include <algorithm>
#include <cmath>
#include <numeric>
#include <vector>

#include "sluice/api/attention_router.h"

SLUICE_BEGIN_NAMESPACE
struct PbsReference {
  int64_t block = 128;
  int64_t segment = 256;
  double p = 0.9;
  int64_t heads_per_order = 1;  // 0: keys keep their order

  using Vector = std::vector<double>;
  static double Logit(const AttentionInputs& in, int64_t i, int64_t h, int64_t s) {
    double sum = 0;
    for (int64_t x = 0; x < in.q.dim; ++x)
      sum += static_cast<double>(in.q.at(i, h)[x]) * in.k.Get(s, h / (in.q.heads / in.k.heads), x);
    return sum * in.scale;
  }
  static void Normalise(Vector& x) {
    double total = 0;
    for (double& e : x) {
      e = std::exp(e);
      total += e;
    }
    for (double& e : x) e /= total;
  }
  static std::vector<int64_t> Falling(const Vector& score) {
    std::vector<int64_t> order(score.size());
    std::iota(order.begin(), order.end(), 0);
    std::stable_sort(order.begin(), order.end(),
                     [&](int64_t a, int64_t b) { return score[a] > score[b]; });
    return order;
  }

  // Logical to original keys of a query head.
  std::vector<int64_t> Order(const AttentionInputs& in, int64_t head) const {
    std::vector<int64_t> order(in.k.rows);
    std::iota(order.begin(), order.end(), 0);
    if (heads_per_order == 0) return order;
    const int64_t sorted = in.k.rows / segment * segment;
    Vector score(sorted);
    const int64_t first = head / heads_per_order * heads_per_order;
    for (int64_t h = first; h < first + heads_per_order; ++h) {
      for (int64_t i = std::max<int64_t>(0, in.q.rows - block); i < in.q.rows; ++i) {
        Vector row(sorted);
        for (int64_t s = 0; s < sorted; ++s) row[s] = Logit(in, i, h, s);
        Normalise(row);
        for (int64_t s = 0; s < sorted; ++s) score[s] += row[s];
      }
    }
    for (int64_t start = 0; start < sorted; start += segment) {
      const Vector own(score.begin() + start, score.begin() + start + segment);
      const std::vector<int64_t> falling = Falling(own);
      for (int64_t j = 0; j < segment; ++j) order[start + j] = start + falling[j];
    }
    return order;
  }

  // Keys that query i attends to, ascending.
  std::vector<uint32_t> List(const AttentionInputs& in, const std::vector<int64_t>& order,
                             int64_t i, int64_t h) const {
    const int64_t from = i / block * block;
    const int64_t to = std::min(in.q.rows, from + block);
    const int64_t own = (in.q_begin + from) / segment * segment;
    Vector logits;
    int64_t sink = -1;
    for (int64_t start = 0; start < own; start += block) {
      double sum = 0;
      for (int64_t j = start; j < start + block; ++j) {
        if (order[j] == 0) sink = start / block;
        for (int64_t r = from; r < to; ++r) sum += Logit(in, r, h, order[j]);
      }
      logits.push_back(sum / static_cast<double>(block * (to - from)));
    }
    Normalise(logits);
    std::vector<bool> keep(logits.size());
    double held = 0;
    for (int64_t b : Falling(logits)) {
      if (held >= p && p < 1) break;
      keep[b] = true;
      held += logits[b];
    }
    if (sink >= 0) keep[sink] = true;

    std::vector<uint32_t> list;
    for (int64_t j = 0; j < in.k.rows; ++j) {
      const bool chosen = j >= own || keep[j / block];
      if (chosen && order[j] <= in.q_begin + i) list.push_back(static_cast<uint32_t>(order[j]));
    }
    std::sort(list.begin(), list.end());
    return list;
  }
};
SLUICE_END_NAMESPACE
#endif  // SLUICE_ROUTERS_ATTENTION_PBS_ATTN_PBS_ATTN_REFERENCE_H_
