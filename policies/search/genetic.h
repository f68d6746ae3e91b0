#ifndef SLUICE_POLICIES_SEARCH_GENETIC_H_
#define SLUICE_POLICIES_SEARCH_GENETIC_H_
// Genetic search, as FTP's scheduler uses it for a sparsity per block under a fixed mean (arXiv
// 2412.11494; the paper gives no settings, these are ours). Deterministic from its seed.
#include <algorithm>
#include <cmath>
#include <functional>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "absl/types/span.h"
#include "sluice/api/check.h"
#include "sluice/policies/common/budget.h"
#include "sluice/runtime/base/counter_rng.h"

SLUICE_BEGIN_NAMESPACE
struct GeneticOptions {
  int64_t population = 32, generations = 30, tournament = 3, elite = 2;
  double mutation = 0.1;  // largest amount moved between two genes of a child
  double max = 0.9;       // of a gene
  size_t fixed = 1;       // first genes that stay 0
  uint64_t seed = 1;
};
struct GeneticResult {
  std::vector<double> best;
  double fitness = 0;
  std::vector<double> history;  // best fitness after each generation, never falling
};
using Fitness = std::function<absl::StatusOr<double>(const std::vector<double>&)>;
// Maximises fitness(genes) over `length` genes in [0, max] that `repair` makes allowed. The first
// population: `starts`, as many as there is room for, and random genes. A fitness that is not a
// number ranks last; ties keep the earlier. population * generations calls at most.
inline absl::StatusOr<GeneticResult> Evolve(
    size_t length, absl::Span<const std::vector<double>> starts, const GeneticOptions& o,
    const std::function<void(std::vector<double>&)>& repair, const Fitness& fitness,
    const std::function<void(int64_t, double)>& progress = {}) {
  if (o.fixed >= length || o.population < 2 || o.generations < 1 || o.tournament < 1 ||
      o.elite < 1 || o.elite >= o.population || !(o.max > 0 && o.max <= 1))
    return absl::InvalidArgumentError(
        absl::StrCat("genetic search of ", length, " genes, ", o.fixed, " fixed, population ",
                     o.population, ", elite ", o.elite, ", generations ", o.generations,
                     ", tournament ", o.tournament, ", max ", o.max));
  for (const auto& start : starts) {
    if (start.size() != length)
      return absl::InvalidArgumentError(
          absl::StrCat("a start of ", start.size(), " genes, wanted ", length));
  }
  struct Member {
    std::vector<double> genes;
    double fitness;
  };
  const auto uniform = [&](int64_t generation, int64_t member, uint64_t draw) {
    return RandomUniform(
        {o.seed, static_cast<uint64_t>(generation), static_cast<uint64_t>(member), draw, 0});
  };
  const auto rate = [&](std::vector<double> genes) -> absl::StatusOr<Member> {
    for (size_t i = 0; i < o.fixed; ++i) genes[i] = 0;
    repair(genes);
    SLUICE_ASSIGN_OR_RETURN(double f, fitness(genes));
    return Member{std::move(genes), std::isnan(f) ? -HUGE_VAL : f};
  };
  const auto better = [](const Member& a, const Member& b) { return a.fitness > b.fitness; };
  std::vector<Member> now;
  for (int64_t m = 0; m < o.population; ++m) {
    std::vector<double> genes(length);
    if (m < std::ssize(starts)) {
      genes = starts[static_cast<size_t>(m)];
    } else {
      for (size_t i = 0; i < length; ++i) genes[i] = o.max * uniform(0, m, i);
    }
    SLUICE_ASSIGN_OR_RETURN(Member made, rate(std::move(genes)));
    now.push_back(std::move(made));
  }
  std::stable_sort(now.begin(), now.end(), better);
  GeneticResult r;
  for (int64_t g = 1; g <= o.generations; ++g) {
    std::vector<Member> next(now.begin(), now.begin() + o.elite);
    for (int64_t m = o.elite; m < o.population && g < o.generations; ++m) {
      uint64_t draw = 0;
      const auto parent =
          [&]() -> const Member& {  // the population is sorted: the lowest index wins
        int64_t best = o.population - 1;
        for (int64_t t = 0; t < o.tournament; ++t)
          best = std::min(best, static_cast<int64_t>(uniform(g, m, draw++) *
                                                     static_cast<double>(o.population)));
        return now[best];
      };
      const Member &a = parent(), &b = parent();
      std::vector<double> child(length);
      for (size_t i = 0; i < length; ++i) child[i] = (uniform(g, m, draw++) < 0.5 ? a : b).genes[i];
      const size_t free = length - o.fixed;
      const size_t from = o.fixed +
                          static_cast<size_t>(uniform(g, m, draw++) * static_cast<double>(free)),
                   to = o.fixed +
                        static_cast<size_t>(uniform(g, m, draw++) * static_cast<double>(free));
      const double amount = o.mutation * uniform(g, m, draw++);
      child[from] -= amount;
      child[to] += amount;
      SLUICE_ASSIGN_OR_RETURN(Member made, rate(std::move(child)));
      next.push_back(std::move(made));
    }
    if (g < o.generations) {
      std::stable_sort(next.begin(), next.end(), better);
      now = std::move(next);
    }
    r.history.push_back(now[0].fitness);
    if (progress) progress(g, now[0].fitness);
  }
  r.best = now[0].genes;
  r.fitness = now[0].fitness;
  return r;
}

// The same for a schedule whose mean is given: FTP's sparsity of every block. Starts beside the
// uniform schedule.
inline absl::StatusOr<GeneticResult> GeneticSearch(
    size_t length, double mean, const GeneticOptions& o, const Fitness& fitness,
    const std::vector<double>& start = {},
    const std::function<void(int64_t, double)>& progress = {}) {
  if (!(mean >= 0) ||
      (o.fixed < length &&
       mean * static_cast<double>(length) > o.max * static_cast<double>(length - o.fixed) + 1e-12))
    return absl::InvalidArgumentError(absl::StrCat("a mean of ", mean, " is out of reach for ",
                                                   length - o.fixed, " free genes of ", length,
                                                   " in [0, ", o.max, "]"));
  std::vector<std::vector<double>> starts = {std::vector<double>(length, mean)};
  if (!start.empty()) starts.push_back(start);
  return Evolve(
      length, starts, o,
      [&](std::vector<double>& genes) { WaterFill(genes, o.fixed, mean, o.max); }, fitness,
      progress);
}
SLUICE_END_NAMESPACE
#endif  // SLUICE_POLICIES_SEARCH_GENETIC_H_
