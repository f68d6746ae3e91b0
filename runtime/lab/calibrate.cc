#include "sluice/runtime/lab/calibrate.h"

#include <cstdio>
#include <optional>

#include "absl/strings/str_cat.h"
#include "sluice/api/check.h"
#include "sluice/runtime/lab/score.h"
#include "sluice/runtime/report/report.h"
#include "sluice/runtime/text/token_file.h"
#include "sluice/runtime/weights/gguf.h"

SLUICE_BEGIN_NAMESPACE
namespace lab {
namespace {
void Tell(const std::string& what) { std::fprintf(stderr, "\r%-60s", what.c_str()); }
absl::Status WriteWeights(const std::string& path, const std::string& bytes) {
  SLUICE_RETURN_IF_ERROR(WriteWholeFile(path, bytes));
  std::printf("\nwrote %s (%zu bytes)\n", path.c_str(), bytes.size());
  return absl::OkStatus();
}
}  // namespace

absl::Status RunCalibrate(const CalibrateRun& run) {
  SLUICE_ASSIGN_OR_RETURN(const host::Model model, host::LoadModel(run.model));
  SLUICE_RETURN_IF_ERROR(CheckLength("a sequence", run.fit.window, 2, model));
  if (run.fit.rank > model.shape.width)
    return absl::OutOfRangeError(absl::StrCat(
        "a rank of ", run.fit.rank, "; allowed: 0 to the model's width of ", model.shape.width));
  SLUICE_RETURN_IF_ERROR(CheckWritable(run.out));
  SLUICE_ASSIGN_OR_RETURN(const std::vector<int32_t> tokens,
                          ReadTokens(run.tokens, run.skip, run.count));
  SLUICE_ASSIGN_OR_RETURN(const std::string bytes,
                          CalibrateInformedRouting(model, tokens, run.fit, Tell));
  return WriteWeights(run.out, bytes);
}
absl::Status RunCalibrateSpt(const CalibrateSptRun& run) {
  SLUICE_ASSIGN_OR_RETURN(const host::Model model, host::LoadModel(run.model));
  SLUICE_RETURN_IF_ERROR(CheckLength("a sequence", run.fit.window, 2, model));
  SLUICE_RETURN_IF_ERROR(CheckWritable(run.out));
  SLUICE_ASSIGN_OR_RETURN(const std::vector<int32_t> tokens,
                          ReadTokens(run.tokens, run.skip, run.count));
  SLUICE_ASSIGN_OR_RETURN(const std::string bytes, CalibrateSpt(model, tokens, run.fit, Tell));
  return WriteWeights(run.out, bytes);
}
absl::Status RunSearchSchedule(ScheduleRun run) {
  SLUICE_ASSIGN_OR_RETURN(const host::Model model, host::LoadModel(run.model));
  SLUICE_RETURN_IF_ERROR(CheckLength("a prompt", run.search.length, 256, model));
  SLUICE_ASSIGN_OR_RETURN(const std::vector<int32_t> held, ReadTokens(run.tokens, 0, -1));
  std::optional<Gguf> weights;
  if (!run.weights.empty()) {
    SLUICE_ASSIGN_OR_RETURN(weights, Gguf::Open(run.weights));
    run.search.weights = &*weights;
  }
  SLUICE_ASSIGN_OR_RETURN(const std::vector<double> best, SearchSchedule(model, held, run.search));
  for (size_t i = 0; i < best.size(); ++i) std::printf("%s%.4f", i == 0 ? "" : ",", best[i]);
  std::printf("\n");
  return absl::OkStatus();
}
}  // namespace lab
SLUICE_END_NAMESPACE
