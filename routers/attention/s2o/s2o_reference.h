#ifndef SLUICE_ROUTERS_ATTENTION_S2O_S2O_REFERENCE_H_
#define SLUICE_ROUTERS_ATTENTION_S2O_S2O_REFERENCE_H_
// S2O in plain loops and double precision, with the walk and its stop rules: dot similarity, units
// of one key, queries ranked by their segment's mean, rankings shared by KV head.
#include <algorithm>
#include <cmath>
#include <numeric>
#include <vector>

#include "sluice/api/attention_router.h"

SLUICE_BEGIN_NAMESPACE
struct S2oReference {
  int64_t segment = 1024;
  int64_t tile = 64;
  int64_t sink = 64;
  bool by_gain = true;
  double tau = 1e-3;

  struct Result {
    std::vector<double> o;  // [q, heads, dv]
    int64_t pairs = 0;
    std::vector<std::vector<int64_t>> history;  // ranked keys of [segment of the call * kv_heads]
  };
  struct Row {
    int64_t query = 0;
    int64_t head = 0;
    double l = 0;
    std::vector<double> o;
  };

  static double Logit(const AttentionInputs& in, int64_t i, int64_t h, int64_t s) {
    double sum = 0;
    for (int64_t x = 0; x < in.q.dim; ++x)
      sum += static_cast<double>(in.q.at(i, h)[x]) * in.k.Get(s, h / (in.q.heads / in.k.heads), x);
    return sum * in.scale;
  }
  // Logits of the test data are small enough to need no maximum. Returns the weight added.
  static double Add(const AttentionInputs& in, Row& row, int64_t s) {
    const double w = std::exp(Logit(in, row.query, row.head, s));
    row.l += w;
    const int64_t kv = row.head / (in.q.heads / in.k.heads);
    for (int64_t x = 0; x < in.v.dim; ++x) row.o[x] += w * in.v.Get(s, kv, x);
    return w;
  }
  static std::vector<int64_t> Falling(const std::vector<double>& score, int64_t first) {
    std::vector<int64_t> order(score.size());
    std::iota(order.begin(), order.end(), 0);
    std::stable_sort(order.begin(), order.end(),
                     [&](int64_t a, int64_t b) { return score[a] > score[b]; });
    for (int64_t& at : order) at += first;
    return order;
  }

  Result Run(const AttentionInputs& in) const {
    Result result;
    result.o.resize(in.q.rows * in.q.heads * in.v.dim);
    for (int64_t from = 0; from < in.q.rows;) {
      const int64_t start = (in.q_begin + from) / segment * segment;
      const int64_t to = std::min(in.q.rows, start + segment - in.q_begin);
      for (int64_t kv = 0; kv < in.k.heads; ++kv) Segment(in, kv, start, from, to, result);
      from = to;
    }
    return result;
  }

  void Segment(const AttentionInputs& in, int64_t kv, int64_t start, int64_t from, int64_t to,
               Result& result) const {
    const int64_t g = in.q.heads / in.k.heads;
    std::vector<double> mean(in.q.dim);
    for (int64_t i = from; i < to; ++i) {
      for (int64_t h = kv * g; h < (kv + 1) * g; ++h) {
        for (int64_t x = 0; x < in.q.dim; ++x)
          mean[x] += in.q.at(i, h)[x] * static_cast<double>(in.scale) /
                     static_cast<double>(g * (to - from));
      }
    }
    std::vector<double> key_score;
    for (int64_t s = sink; s < start; ++s) {
      double sum = 0;
      for (int64_t x = 0; x < in.q.dim; ++x) sum += mean[x] * in.k.Get(s, kv, x);
      key_score.push_back(sum);
    }
    std::vector<double> query_score;
    for (int64_t i = from; i < to; ++i) {
      double sum = 0;
      for (int64_t h = kv * g; h < (kv + 1) * g; ++h) {
        for (int64_t x = 0; x < in.q.dim; ++x) sum += mean[x] * in.q.at(i, h)[x];
      }
      query_score.push_back(sum);
    }
    const std::vector<int64_t> history = Falling(key_score, sink);
    const std::vector<int64_t> queries = Falling(query_score, from);
    result.history.push_back(history);
    std::sort(key_score.begin(), key_score.end(), std::greater<>());
    for (size_t at = 0; at < queries.size(); at += tile) {
      std::vector<Row> rows;
      for (size_t i = at; i < std::min(queries.size(), at + tile); ++i) {
        for (int64_t h = kv * g; h < (kv + 1) * g; ++h)
          rows.push_back({queries[i], h, 0, std::vector<double>(in.v.dim)});
      }
      Walk(in, start, history, key_score, rows, result);
    }
  }

  void Walk(const AttentionInputs& in, int64_t start, const std::vector<int64_t>& history,
            const std::vector<double>& score, std::vector<Row>& rows, Result& result) const {
    for (Row& row : rows) {
      for (int64_t s = 0; s <= in.q_begin + row.query; ++s) {
        if (s >= sink && s < start) continue;
        Add(in, row, s);
        ++result.pairs;
      }
    }
    for (size_t at = 0; at < history.size(); at += 64) {
      if (!by_gain && std::exp(score[at] - score[0]) < tau) break;
      double most = 0;
      for (Row& row : rows) {
        double added = 0;
        for (size_t j = at; j < std::min(history.size(), at + 64); ++j) {
          added += Add(in, row, history[j]);
          ++result.pairs;
        }
        most = std::max(most, added / row.l);
      }
      if (by_gain && most < tau) break;
    }
    for (const Row& row : rows) {
      for (int64_t x = 0; x < in.v.dim; ++x)
        result.o[(row.query * in.q.heads + row.head) * in.v.dim + x] = row.o[x] / row.l;
    }
  }
};
SLUICE_END_NAMESPACE
#endif  // SLUICE_ROUTERS_ATTENTION_S2O_S2O_REFERENCE_H_
