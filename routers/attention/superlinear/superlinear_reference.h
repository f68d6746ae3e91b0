#ifndef SLUICE_ROUTERS_ATTENTION_SUPERLINEAR_SUPERLINEAR_REFERENCE_H_
#define SLUICE_ROUTERS_ATTENTION_SUPERLINEAR_SUPERLINEAR_REFERENCE_H_
// Superlinear attention in plain loops and double precision, one query and head at a time.
#include "sluice/routers/attention/common/reference.h"

SLUICE_BEGIN_NAMESPACE
namespace attention {
struct SuperlinearReference {
  int64_t sw_index = 65;
  int64_t k = 3;
  double p = 0.55;
  double e = 0.55;
  double back = 3;
  double ahead = 1;
  std::vector<float> query;  // [heads * d, width]; empty: the attention's own query searches

  struct Row {
    reference::Vector o;
    reference::Vector gates;
    std::vector<uint32_t> keys;  // of the window and all spans, sorted, repeated where they overlap
  };

  reference::Vector SearchQuery(const AttentionInputs& in, int64_t i, int64_t head) const {
    if (query.empty()) return reference::Query(in.q, i, head, 1);
    const int64_t d = in.q.dim;
    reference::Vector x(d);
    for (int64_t c = 0; c < d; ++c) {
      for (int64_t w = 0; w < in.hidden.cols; ++w)
        x[c] += double{in.hidden.row(i)[w]} * query[(head * d + c) * in.hidden.cols + w];
    }
    for (int64_t c = 0; c + 1 < d; c += 2) {
      const double angle = static_cast<double>(in.q_begin + i) *
                           std::pow(in.rope_base, -static_cast<double>(c) / static_cast<double>(d));
      const double a = x[c];
      const double b = x[c + 1];
      x[c] = a * std::cos(angle) - b * std::sin(angle);
      x[c + 1] = a * std::sin(angle) + b * std::cos(angle);
    }
    return x;
  }
  // Softmax attention over the window and [begin, end).
  static reference::Vector Attend(const AttentionInputs& in, int64_t i, int64_t head,
                                  int64_t window_start, int64_t begin, int64_t end) {
    const int64_t kv = head / (in.q.heads / in.k.heads);
    const reference::Vector q = reference::Query(in.q, i, head, in.scale);
    reference::Vector o(in.v.dim);
    double total = 0;
    for (int64_t s = 0; s <= in.q_begin + i; ++s) {
      if (s < window_start && (s < begin || s >= end)) continue;
      const double w = std::exp(reference::Product(q, reference::Key(in.k, s, kv)));
      total += w;
      for (int64_t x = 0; x < in.v.dim; ++x) o[x] += w * in.v.Get(s, kv, x);
    }
    for (double& x : o) x /= total;
    return o;
  }

  Row Query(const AttentionInputs& in, int64_t i, int64_t head) const {
    const int64_t t = in.q_begin + i;
    const int64_t kv = head / (in.q.heads / in.k.heads);
    const double reach = std::floor(std::pow(static_cast<double>(sw_index) + 1, 1 / p)) - 1;
    const int64_t window_start =
        reach >= static_cast<double>(t + 1) ? 0 : t + 1 - static_cast<int64_t>(reach);
    const reference::Vector q = SearchQuery(in, i, head);
    std::vector<int64_t> anchors;
    reference::Vector score;
    for (int64_t n = sw_index + 1;; ++n) {
      const double distance = std::floor(std::pow(static_cast<double>(n), 1 / p));
      if (distance > static_cast<double>(t + 1)) break;
      anchors.push_back(t + 1 - static_cast<int64_t>(distance));
      score.push_back(reference::Product(q, reference::Key(in.k, anchors.back(), kv)));
    }

    Row row;
    row.o.resize(in.v.dim);
    for (int64_t s = window_start; s <= t; ++s) row.keys.push_back(static_cast<uint32_t>(s));
    const std::vector<int64_t> chosen = reference::Best(score, k);
    if (chosen.empty()) {
      row.o = Attend(in, i, head, window_start, 0, 0);
      return row;
    }
    for (int64_t c : chosen) row.gates.push_back(score[c]);
    row.gates = reference::Softmax(row.gates);
    const double size = std::pow(static_cast<double>(t + 1), e);
    for (size_t c = 0; c < chosen.size(); ++c) {
      const int64_t a = anchors[chosen[c]];
      const int64_t begin = std::max<int64_t>(0, a - static_cast<int64_t>(std::ceil(back * size)));
      const int64_t end =
          std::min(a + static_cast<int64_t>(std::ceil(ahead * size)), window_start - 1) + 1;
      const reference::Vector o = Attend(in, i, head, window_start, begin, end);
      for (int64_t x = 0; x < in.v.dim; ++x) row.o[x] += row.gates[c] * o[x];
      for (int64_t s = begin; s < end; ++s) row.keys.push_back(static_cast<uint32_t>(s));
    }
    std::sort(row.keys.begin(), row.keys.end());
    return row;
  }

  reference::Lists Lists(const AttentionInputs& in) const {
    reference::Lists lists;
    for (int64_t i = 0; i < in.q.rows; ++i) {
      for (int64_t h = 0; h < in.q.heads; ++h) lists.push_back(Query(in, i, h).keys);
    }
    return lists;
  }
};
}  // namespace attention
SLUICE_END_NAMESPACE
#endif  // SLUICE_ROUTERS_ATTENTION_SUPERLINEAR_SUPERLINEAR_REFERENCE_H_
