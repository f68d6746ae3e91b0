#ifndef SLUICE_RUNTIME_LAB_PRUNE_SEARCH_SPARSITY_H_
#define SLUICE_RUNTIME_LAB_PRUNE_SEARCH_SPARSITY_H_
// Which sparse operator for which matrices: a search under a budget of weights that stay. This is
// the discrete half of DASS (arXiv 2207.06968), with any of the searches of policies/search: the
// operators are pruners' masks of the trained weights, and nothing is trained.
//
// An operator's weights are made once, from what the dense model's matrices are multiplied with on
// the text that is searched on. A plan is scored by that text; what it is worth is told by windows
// of the text that no choice has seen.
#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "sluice/api/weight_pruner.h"
#include "sluice/policies/common/quantile.h"
#include "sluice/runtime/host/engine.h"
#include "sluice/runtime/lab/prune/prune.h"

SLUICE_BEGIN_NAMESPACE
namespace lab {
// "dense", or a pruner of weights with what goes: "wanda@0.6", "wanda@2:4",
// "dsnot:growth=1@0.7" (a repair starts from wanda). No stages: dense.
struct SparsityOperator {
  std::string text;
  PruneStages stages;
  PruneTarget target;
};
absl::StatusOr<SparsityOperator> ReadSparsityOperator(const std::string& text);

// What has an operator of its own: a layer, its attention and its feed-forward part, or each
// matrix.
enum class SparsityGroups : uint8_t { kLayer, kPart, kMatrix };
inline constexpr const char* kSparsityGroups[] = {"layer", "part", "matrix"};

struct SparsitySearchOptions {
  std::string model;                 // GGUF file, no Mixture of Experts
  std::string method = "greedy";     // of kSearchMethods
  std::vector<std::string> palette;  // operators, two or more
  SparsityGroups groups = SparsityGroups::kPart;
  double keep = 0.5;  // share of the layers' weights that stays at most, (0, 1]
  int64_t context = 2048, documents = 2, evaluations = 80;
  int64_t held_out = 8;  // documents at most that the plans are reported on
  uint64_t seed = 1;
  int64_t seeds = 3;  // of the search and its control; 1: no verdict
  std::string out;    // GGUF file of the plan that was found; "": none
  host::EngineOptions engine;
  std::function<void(const std::string& what, double share)> progress;
};

struct SparsityPlan {
  std::string text;     // attention(2*wanda@0.5 | 4*dense), ffn(6*wanda@2:4): by layer
  double kept = 0;      // share of the layers' weights
  double searched = 0;  // perplexity of the text that was searched on
  double held_out = 0;  // of the text that was not
  // Of log perplexity in held-out windows, against the best uniform plan.
  MeanInterval change = {NAN, NAN, NAN};
  int64_t evaluations = 0;
};
struct SparsitySearch {
  int64_t weights = 0, groups = 0, held_out = 0;  // weights of the groups; held-out documents
  SparsityPlan dense;
  // One operator everywhere: of those within the budget the best on the text that was searched on.
  std::optional<SparsityPlan> uniform;
  // The best over the seeds, as the search sees it, and random search's with as many evaluations;
  // with one seed, or where the method is random search, only the first.
  SparsityPlan found;
  std::optional<SparsityPlan> random;
  // What that says of the search, over the seeds: on the text that was searched on, and on the
  // other.
  std::string verdict, held_out_verdict;
};
// `tokens`: cut into documents of `context` tokens, of which `documents`, spread over all of them,
// are searched on and as many others as there are, at most `held_out`, are reported on. `model`
// is what the file holds; it is whole again afterwards.
absl::StatusOr<SparsitySearch> SearchSparsity(host::Model& model,
                                              const std::vector<int32_t>& tokens,
                                              const SparsitySearchOptions& options);
}  // namespace lab
SLUICE_END_NAMESPACE
#endif  // SLUICE_RUNTIME_LAB_PRUNE_SEARCH_SPARSITY_H_
