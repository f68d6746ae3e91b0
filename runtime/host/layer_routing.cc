#include "sluice/runtime/host/layer_routing.h"

#include <algorithm>
#include <numeric>

#include "absl/strings/str_cat.h"

SLUICE_BEGIN_NAMESPACE
namespace host {
absl::StatusOr<LayerRouter> LayerRouter::Create(const LayerRouting& options,
                                                const ModelShape& shape, int64_t max_tokens,
                                                Executor* executor) {
  LayerRouter r(shape, executor);
  r.scores_.assign(shape.layers, 0);
  r.fixed_ = options.fixed;
  if (!options.fixed.empty()) {
    if (static_cast<int64_t>(options.fixed.size()) != shape.layers)
      return absl::InvalidArgumentError(
          absl::StrCat(options.fixed.size(), " fixed layer modes for ", shape.layers, " layers"));
    return r;
  }

  SLUICE_ASSIGN_OR_RETURN(const RouteTraits traits, TraitsOf(options.router));
  if (traits.domain != Domain::kLayer || traits.reads != kReadsQueries)
    return absl::InvalidArgumentError(
        absl::StrCat(traits.name,
                     " cannot route layers here; allowed: layer routers that read "
                     "queries before RoPE"));

  const RouteShape items = {
      .items = 1, .rows = max_tokens, .heads = shape.heads, .head_dim = shape.head_dim};
  for (int64_t layer = 0; layer < shape.layers; ++layer)
    SLUICE_RETURN_IF_ERROR(r.routers_.Add(options.router, {{"layer", absl::StrCat(layer), true}},
                                          options.weights, items));
  r.routers_.Reserve();
  return r;
}

absl::StatusOr<LayerMode> LayerRouter::Decide(int64_t layer, int64_t prompt,
                                              const Queries& queries) {
  if (!fixed_.empty()) return fixed_[layer];

  const RoutePlanInfo& info = routers_.info(layer);
  const int64_t head = info.head_rows < 0 ? prompt : std::min(info.head_rows, prompt);
  const int64_t tail =
      info.tail_rows < 0 ? head : std::max(head, prompt - std::min(info.tail_rows, prompt));
  const int64_t rows = head + prompt - tail;
  const int64_t width = shape_.heads * shape_.head_dim;
  queries_.resize(static_cast<size_t>(rows * width));
  queries(0, head, queries_.data());
  queries(tail, prompt - tail, queries_.data() + head * width);
  positions_.resize(static_cast<size_t>(rows));
  std::iota(positions_.begin(), positions_.begin() + head, 0);
  std::iota(positions_.begin() + head, positions_.end(), tail);

  const int64_t item_rows[] = {0, rows};
  RouteInputs in;
  in.items = 1;
  in.queries = {queries_.data(), rows, shape_.heads, shape_.head_dim, width, shape_.head_dim};
  in.positions = positions_;
  in.item_rows = item_rows;
  in.lengths = absl::MakeConstSpan(&prompt, 1);
  in.layer = layer;
  SLUICE_ASSIGN_OR_RETURN(const Assignment* decided, routers_.Run(layer, in));
  if (decided->entries() != 1)
    return absl::InvalidArgumentError(absl::StrCat(routers_.traits().name, " gave a layer ",
                                                   decided->entries(), " modes, wanted one"));
  ++calls_;
  scores_[layer] = decided->score.empty() ? 0.0f : decided->score[0];
  const bool full = routers_.unit(layer, decided->unit[0]).cost >= 1;
  return full ? LayerMode::kFull : LayerMode::kSparse;
}
}  // namespace host
SLUICE_END_NAMESPACE
