#include "sluice/runtime/host/token_pruning.h"

#include <algorithm>
#include <cmath>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"

SLUICE_BEGIN_NAMESPACE
namespace host {
absl::StatusOr<TokenPruner> TokenPruner::Create(const TokenPruning& options,
                                                const ModelShape& shape, int64_t capacity,
                                                Executor* executor) {
  TokenPruner p(options, shape, executor);
  SLUICE_ASSIGN_OR_RETURN(const RouteTraits traits, TraitsOf(options.router));
  if (traits.domain != Domain::kToken || traits.combine != Combine::kReplace ||
      (traits.reads & ~kReadsFeedback) != 0)
    return absl::InvalidArgumentError(
        absl::StrCat(traits.name,
                     " cannot prune tokens here; allowed: token routers that read the attention "
                     "each token received at most, and whose one unit replaces the token"));

  if (static_cast<int64_t>(options.sparsity.size()) != shape.layers)
    return absl::InvalidArgumentError(absl::StrCat(
        options.sparsity.size(), " block sparsities, wanted one a block: ", shape.layers));
  for (size_t layer = 0; layer < options.sparsity.size(); ++layer) {
    const double sparsity = options.sparsity[layer];
    if (!(sparsity >= 0 && sparsity <= 1))
      return absl::InvalidArgumentError(absl::StrCat("sparsity ", sparsity, " is outside [0, 1]"));
    std::vector<AddedKey> keys = {{"sparsity", absl::StrFormat("%.17g", sparsity)},
                                  {"layer", absl::StrCat(layer), true}};
    if (options.causal) keys.push_back({"causal", "1"});
    SLUICE_RETURN_IF_ERROR(
        p.routers_.Add(options.router, keys, options.weights, {.items = capacity}));
  }

  SLUICE_ASSIGN_OR_RETURN(p.compute_, p.routers_.HostUnit(0));
  p.routers_.Reserve();
  p.score_.resize(static_cast<size_t>(capacity));
  return p;
}

absl::Status TokenPruner::Choose(int64_t layer, int64_t begin, int64_t n,
                                 std::vector<int32_t>& chosen) {
  const size_t at = static_cast<size_t>(layer);
  const double sparsity = options_.sparsity[at];
  const int64_t end = begin + n;
  chosen.clear();

  // The first block fills the score table; after the prompt only single tokens skip, and only whole
  // blocks.
  const bool decoding = begin > 0;
  const bool all =
      layer == 0 || sparsity == 0 || (decoding && (n > 1 || sparsity <= options_.decode));
  // A router that reads nothing leaves single tokens to the schedule.
  const bool none = decoding && routers_.traits().reads == 0;
  if (!all && none) return absl::OkStatus();
  if (all) {
    for (int64_t t = begin; t < end; ++t) chosen.push_back(static_cast<int32_t>(t));
    return absl::OkStatus();
  }

  RouteInputs in;
  in.items = end;
  in.feedback = absl::MakeConstSpan(score_.data(), static_cast<size_t>(end));
  in.layer = layer;
  SLUICE_ASSIGN_OR_RETURN(const Assignment* decided, routers_.Run(at, in));
  if (decided->entries() != end)
    return absl::InvalidArgumentError(absl::StrCat(routers_.traits().name, " gave ", end,
                                                   " tokens ", decided->entries(),
                                                   " units, wanted one each"));
  for (int64_t t = begin; t < end; ++t) {
    if (decided->unit[t] == compute_) chosen.push_back(static_cast<int32_t>(t));
  }
  return absl::OkStatus();
}

void TokenPruner::AddQueries(const float* q, int64_t stride, int64_t n) {
  if (!scores()) return;
  const int64_t width = shape_.heads * shape_.head_dim;
  const int64_t keep = options_.causal ? n : std::min(n, kScoreQueries);
  for (int64_t i = n - keep; i < n; ++i)
    queries_.insert(queries_.end(), q + i * stride, q + i * stride + width);
}

void TokenPruner::Score(const KvView& keys, const std::vector<int32_t>& computed) {
  const int64_t d = shape_.head_dim;
  const int64_t width = shape_.heads * d;
  const int64_t had = static_cast<int64_t>(queries_.size()) / width;
  const int64_t votes = options_.causal ? had : std::min(had, kScoreQueries);
  block_score_.resize(static_cast<size_t>(keys.rows));
  received_.Run({queries_.data() + (had - votes) * width, votes, shape_.heads, d, width, d}, keys,
                1.0f / std::sqrt(static_cast<float>(d)), options_.causal, block_score_.data());

  const int64_t n = static_cast<int64_t>(computed.size());
  const int64_t from = options_.causal ? 0 : keys.rows - n;
  for (int64_t i = 0; i < n; ++i) score_[computed[i]] = block_score_[from + i];
}
}  // namespace host
SLUICE_END_NAMESPACE
