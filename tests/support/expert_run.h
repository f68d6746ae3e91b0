#ifndef SLUICE_TESTS_SUPPORT_EXPERT_RUN_H_
#define SLUICE_TESTS_SUPPORT_EXPERT_RUN_H_
// Runs a registered expert router on given inputs, and what it decided, by token.
#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "sluice/api/registry.h"
#include "sluice/routers/builtin.h"
#include "sluice/runtime/base/counter_rng.h"
#include "sluice/runtime/base/tbb_executor.h"

SLUICE_BEGIN_NAMESPACE
// [rows, cols], normal.
inline std::vector<float> NormalRows(int64_t rows, int64_t cols, uint64_t seed, double scale = 1) {
  std::vector<float> x(static_cast<size_t>(rows * cols));
  for (size_t i = 0; i < x.size(); ++i)
    x[i] = static_cast<float>(scale * RandomNormal({seed, 0, 0, 0, i}));
  return x;
}
inline MatrixView<const float> RowsOf(const std::vector<float>& x, int64_t cols) {
  return {x.data(), std::ssize(x) / cols, cols, cols};
}

struct ExpertRun {
  absl::Status status;
  AssignmentBuffer buffer;

  const Assignment& a() const { return buffer.view(); }
  std::vector<int32_t> Units(int64_t i) const {
    return {a().unit.begin() + a().row_ptr[i], a().unit.begin() + a().row_ptr[i + 1]};
  }
  std::vector<float> Weights(int64_t i) const {
    return {a().weight.begin() + a().row_ptr[i], a().weight.begin() + a().row_ptr[i + 1]};
  }
  std::vector<std::vector<int32_t>> AllUnits() const {
    std::vector<std::vector<int32_t>> all;
    for (int64_t i = 0; i < a().items; ++i) all.push_back(Units(i));
    return all;
  }
  std::vector<float> AllWeights() const {
    return {a().weight.begin(), a().weight.begin() + a().entries()};
  }
};

// `text`: "expert/name:key=value". The shape is what the inputs have; `units`: 0, where the router
// knows its own.
inline ExpertRun RunExperts(const std::string& text, const RouteInputs& in, int64_t units,
                            const WeightSource* weights = nullptr, int threads = 1) {
  ExpertRun r;
  auto router = BuiltinRouters().routers.Create(text, weights);
  r.status = router.status();
  if (!r.status.ok()) return r;
  auto plan = (*router)->MakePlan({.items = in.items,
                                   .units = units,
                                   .width = in.features.cols,
                                   .workers = threads,
                                   .hidden = in.hidden.cols});
  r.status = plan.status();
  if (!r.status.ok()) return r;

  const RoutePlanInfo& info = (*plan)->info();
  OwnedWorkspace memory(info.workspace_bytes);
  r.buffer.Reserve(in.items, info.max_entries, info.max_dropped);
  const auto executor = MakeTbbExecutor(threads);
  r.status = (*router)->Run(**plan, in, {memory.workspace(), executor.get()}, r.buffer.view());
  if (!r.status.ok()) return r;
  EXPECT_TRUE(ValidateAssignment(r.a()).ok()) << ValidateAssignment(r.a());
  return r;
}
SLUICE_END_NAMESPACE
#endif  // SLUICE_TESTS_SUPPORT_EXPERT_RUN_H_
