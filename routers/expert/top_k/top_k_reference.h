#ifndef SLUICE_ROUTERS_EXPERT_TOP_K_TOP_K_REFERENCE_H_
#define SLUICE_ROUTERS_EXPERT_TOP_K_TOP_K_REFERENCE_H_
// The specification: plain loops in double precision.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "sluice/api/version.h"

SLUICE_BEGIN_NAMESPACE
namespace reference {
struct TopKOptions {
  int64_t k = 2;
  std::string score = "softmax", renormalise = "sum";
  double scale = 1;
  int64_t groups = 1, keep_groups = 1;
};
struct Chosen {
  int64_t unit;
  double rank, weight;
};

inline double Score(const std::string& kind, const std::vector<double>& z, size_t u) {
  if (kind == "sigmoid") return 1 / (1 + std::exp(-z[u]));
  if (kind == "sqrt_softplus") return std::sqrt(std::log(1 + std::exp(z[u])));
  if (kind == "logit") return z[u];
  double sum = 0;
  for (double x : z) sum += std::exp(x);
  return std::exp(z[u]) / sum;
}

// The experts of one token, ascending.
inline std::vector<Chosen> TopKOfToken(const std::vector<double>& z,
                                       const std::vector<double>& bias, const TopKOptions& o) {
  std::vector<Chosen> all;
  for (size_t u = 0; u < z.size(); ++u) {
    const double s = Score(o.score, z, u);
    all.push_back({static_cast<int64_t>(u), bias.empty() ? s : s + bias[u], s});
  }

  const size_t size = z.size() / static_cast<size_t>(o.groups);
  std::vector<std::pair<double, size_t>> worth;  // of each group; negated, so that sort is falling
  for (size_t g = 0; g < static_cast<size_t>(o.groups); ++g) {
    std::vector<double> ranks;
    for (size_t j = 0; j < size; ++j) ranks.push_back(all[g * size + j].rank);
    std::sort(ranks.rbegin(), ranks.rend());
    double sum = 0;
    for (size_t j = 0; j < static_cast<size_t>(o.k / o.keep_groups) && j < size; ++j)
      sum += ranks[j];
    worth.push_back({-sum, g});
  }
  std::sort(worth.begin(), worth.end());

  std::vector<Chosen> open;
  for (const Chosen& c : all) {
    for (size_t r = 0; r < static_cast<size_t>(o.keep_groups); ++r) {
      if (worth[r].second == static_cast<size_t>(c.unit) / size) open.push_back(c);
    }
  }
  std::stable_sort(open.begin(), open.end(),
                   [](const Chosen& a, const Chosen& b) { return a.rank > b.rank; });
  open.resize(static_cast<size_t>(o.k));
  std::sort(open.begin(), open.end(),
            [](const Chosen& a, const Chosen& b) { return a.unit < b.unit; });

  double sum = 0;
  for (Chosen& c : open) {
    if (o.renormalise == "softmax") c.weight = std::exp(c.weight);
    sum += c.weight;
  }
  const bool divide = o.renormalise != "none" && !(o.score == "sigmoid" && o.k == 1);
  for (Chosen& c : open) c.weight *= divide ? o.scale / sum : o.scale;
  return open;
}

// Which (token, slot) pairs a capacity keeps, first choices of all tokens first. chosen: each
// token's experts by falling rank.
inline std::vector<std::vector<bool>> KeptBySlot(const std::vector<std::vector<Chosen>>& chosen,
                                                 int64_t units, int64_t capacity) {
  std::vector<int64_t> load(static_cast<size_t>(units));
  std::vector<std::vector<bool>> kept(chosen.size());
  for (size_t slot = 0; slot < 64; ++slot) {
    for (size_t t = 0; t < chosen.size(); ++t) {
      if (slot >= chosen[t].size()) continue;
      kept[t].push_back(load[static_cast<size_t>(chosen[t][slot].unit)]++ < capacity);
    }
  }
  return kept;
}
}  // namespace reference
SLUICE_END_NAMESPACE
#endif  // SLUICE_ROUTERS_EXPERT_TOP_K_TOP_K_REFERENCE_H_
