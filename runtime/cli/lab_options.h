#ifndef SLUICE_RUNTIME_CLI_LAB_OPTIONS_H_
#define SLUICE_RUNTIME_CLI_LAB_OPTIONS_H_
// Options that the lab's commands share, and how each of them adds itself.
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "sluice/runtime/cli/command.h"
#include "sluice/runtime/host/engine.h"
#include "sluice/runtime/host/policy.h"
#include "sluice/runtime/lab/compare/compare.h"
#include "sluice/runtime/lab/facts_file.h"

SLUICE_BEGIN_NAMESPACE
namespace cli {
// Tokens are counted to 2^40 at most, so that no sum of two counts overflows.
inline constexpr int64_t kMostTokens = int64_t{1} << 40;

// --model and how it runs.
struct LabModel {
  std::string path;
  std::string cache = "f32";
  host::EngineOptions engine;

  LabModel();
  // --model, --cache, --chunk, --threads.
  void AddTo(CLI::App& app);
  // --router, --sparse-weights, --packed-experts and --dense-layers as well.
  void AddRoutedTo(CLI::App& app);
  // The model; fills `engine.cache`.
  absl::StatusOr<host::Model> Load();
};
void AddThreads(CLI::App& app, int& threads);
// "4k" or "4096".
absl::StatusOr<int64_t> ReadLength(const std::string& text);
// Says on stderr what is measured and how long the rest will take.
std::function<void(const std::string&, double)> LabProgress();

// Where a command reads token ids.
inline constexpr const char* kTokensHelp = "token ids: .u16, .u32 (little-endian) or .npy";

// A model and the held-out text that it is tried on.
struct LabTrial {
  LabModel model;
  std::string tokens = host::ModelsFolder() + "/sluice-mini-eval.u16";
  void AddTo(CLI::App& app);
};

// --facts, a number or a file of their wording, and --spaces.
struct LabFacts {
  std::vector<std::string> given;
  bool spaces = false;

  void AddTo(CLI::App& app, int64_t count, const std::string& what);
  // `count` facts where none were said.
  absl::StatusOr<lab::FactChoice> Read(int64_t count) const;
  // The same for a comparison's facts.
  absl::Status ReadInto(lab::CompareOptions& o) const;
};
// Finished documents are kept in `progress`, and with `fresh` nothing that a former run left there.
void KeepProgress(const std::string& progress, bool fresh, lab::CompareOptions& o);

// One file a group: lab_score.cc, lab_compare.cc, lab_search.cc, lab_learned.cc, lab_encoder.cc,
// lab_prune.cc.
void AddScoring(CLI::App& app, const Exit& exit);     // perplexity, facts, generate
void AddComparison(CLI::App& app, const Exit& exit);  // compare
void AddSearch(CLI::App& app, const Exit& exit);      // search
void AddLearned(CLI::App& app, const Exit& exit);     // evaluate, calibrate, search-schedule
void AddEvaluateAttention(CLI::App& evaluate, const Exit& exit);
void AddEncoder(CLI::App& app, const Exit& exit);  // classify, prune-encoder
void AddPrune(CLI::App& app, const Exit& exit);    // prune
}  // namespace cli
SLUICE_END_NAMESPACE
#endif  // SLUICE_RUNTIME_CLI_LAB_OPTIONS_H_
