#ifndef SLUICE_API_PRUNER_CODEC_H_
#define SLUICE_API_PRUNER_CODEC_H_
// The one place where pruners' C++ records become C records and back.
#include <algorithm>

#include "sluice/api/abi/sluice_abi.h"
#include "sluice/api/route_codec.h"
#include "sluice/api/weight_pruner.h"

SLUICE_BEGIN_NAMESPACE
namespace pruner_codec {
inline sluice_prune_inputs ToC(const PruneInputs& in) {
  const auto data = [](absl::Span<const float> x) { return x.empty() ? nullptr : x.data(); };
  const PruneTarget& t = in.target;
  sluice_prune_inputs c = {};
  c.struct_size = sizeof c;
  c.weights = route_codec::ToC(in.weights);
  c.tokens = in.stats.tokens;
  c.mean = data(in.stats.mean);
  c.sum_squares = data(in.stats.sum_squares);
  c.gram = route_codec::ToC(in.stats.gram);
  c.kind = static_cast<uint32_t>(t.kind);
  c.scope = static_cast<uint32_t>(t.scope);
  c.ratio = t.ratio;
  c.n = t.n;
  c.m = t.m;
  c.count = t.count;
  c.cost = t.cost;
  c.column_cost = data(t.column_cost);
  c.block_rows = t.block_rows;
  c.block_cols = t.block_cols;
  c.start = in.start != nullptr ? in.start->words().data() : nullptr;
  return c;
}

// `start` takes a copy of the start mask, where there is one.
inline absl::StatusOr<PruneInputs> FromC(const sluice_prune_inputs& c, Mask& start) {
  if (c.kind > 3 || c.scope > 2)
    return absl::InvalidArgumentError(absl::StrCat("target of kind ", c.kind, " and scope ",
                                                   c.scope,
                                                   "; known are 0 to 3 and 0 "
                                                   "to 2"));
  const auto cols = static_cast<size_t>(c.weights.cols);
  PruneInputs in;
  in.weights = route_codec::FromC(c.weights);
  in.stats.tokens = c.tokens;
  in.stats.mean = route_codec::FromC(c.mean, cols);
  in.stats.sum_squares = route_codec::FromC(c.sum_squares, cols);
  in.stats.gram = route_codec::FromC(c.gram);
  in.target.kind = static_cast<PruneTarget::Kind>(c.kind);
  in.target.scope = static_cast<PruneTarget::Scope>(c.scope);
  in.target.ratio = c.ratio;
  in.target.n = c.n;
  in.target.m = c.m;
  in.target.count = c.count;
  in.target.cost = c.cost;
  in.target.column_cost = route_codec::FromC(c.column_cost, cols);
  in.target.block_rows = c.block_rows;
  in.target.block_cols = c.block_cols;
  if (c.start != nullptr) {
    start = Mask(c.weights.rows, c.weights.cols, false);
    std::copy_n(c.start, start.words().size(), start.words().begin());
    in.start = &start;
  }
  return in;
}

inline sluice_pruner_traits ToC(const PrunerTraits& t) {
  sluice_pruner_traits c = {};
  c.struct_size = sizeof c;
  c.name = route_codec::ToC(t.name);
  c.title = route_codec::ToC(t.title);
  c.arxiv = route_codec::ToC(t.arxiv);
  c.reads = t.reads;
  c.kinds = t.kinds;
  c.scopes = t.scopes;
  c.repairs = t.repairs ? 1 : 0;
  return c;
}
inline PrunerTraits FromC(const sluice_pruner_traits& c) {
  PrunerTraits t;
  t.name = route_codec::FromC(c.name);
  t.title = route_codec::FromC(c.title);
  t.arxiv = route_codec::FromC(c.arxiv);
  t.reads = c.reads;
  t.kinds = c.kinds;
  t.scopes = c.scopes;
  t.repairs = c.repairs != 0;
  return t;
}
}  // namespace pruner_codec
SLUICE_END_NAMESPACE
#endif  // SLUICE_API_PRUNER_CODEC_H_
