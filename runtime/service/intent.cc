#include "sluice/runtime/service/intent.h"

#include <algorithm>
#include <cmath>
#include <set>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/strip.h"
#include "sluice/api/check.h"
#include "sluice/api/executor.h"
#include "sluice/runtime/text/encoder.h"
#include "sluice/runtime/text/ngram_classifier.h"
#include "sluice/runtime/weights/gguf.h"

SLUICE_BEGIN_NAMESPACE
namespace {
// Maps a model's labels onto the configured tasks.
class Mapping {
 public:
  static absl::StatusOr<Mapping> Of(const std::vector<std::string>& labels,
                                    const std::vector<std::string>& tasks,
                                    const IntentLabels& renamed) {
    std::vector<std::string> astray;
    std::set<std::string> used;
    Mapping m;
    for (const std::string& label : labels) {
      const auto rule = RuleOf(label, renamed);
      const bool told = rule != renamed.end();
      if (told) used.insert(rule->first);
      const std::string& task = told ? rule->second : label;
      const auto at = std::find(tasks.begin(), tasks.end(), task);
      if (at == tasks.end() && !(told && task.empty())) astray.push_back(label);
      m.task_.push_back(at == tasks.end() ? -1 : static_cast<int>(at - tasks.begin()));
    }
    for (const auto& [name, task] : renamed) {
      if (!used.contains(name))
        return absl::NotFoundError(absl::StrCat("intent.label: the model has no label '", name,
                                                "'; it has ", absl::StrJoin(labels, ", ")));
      if (!task.empty() && std::find(tasks.begin(), tasks.end(), task) == tasks.end())
        return absl::NotFoundError(absl::StrCat("intent.label: '", name, "' is no task '", task,
                                                "'; the tasks are ", absl::StrJoin(tasks, ", ")));
    }
    if (!astray.empty())
      return absl::InvalidArgumentError(
          absl::StrCat("intent: the model's label '", absl::StrJoin(astray, "', '"),
                       "' is no task; the tasks are ", absl::StrJoin(tasks, ", "),
                       ". Say which one it is: intent { label { name: \"", astray[0],
                       "\" task: }}; an empty task: none, name: \"*\": all others"));
    if (std::all_of(m.task_.begin(), m.task_.end(), [](int t) { return t < 0; }))
      return absl::InvalidArgumentError("intent: no label of the model is a task");
    return m;
  }
  void Apply(absl::Span<const double> p, absl::Span<double> intent) const {
    std::fill(intent.begin(), intent.end(), 0.0);
    double sum = 0;
    for (size_t i = 0; i < p.size(); ++i) {
      if (task_[i] >= 0) {
        intent[task_[i]] += p[i];
        sum += p[i];
      }
    }
    for (double& w : intent) w = sum > 0 ? w / sum : 1.0 / static_cast<double>(intent.size());
  }

 private:
  // The label's own, else the longest that ends with * and begins as it does.
  static IntentLabels::const_iterator RuleOf(const std::string& label, const IntentLabels& rules) {
    auto best = rules.find(label);
    if (best != rules.end()) return best;
    for (auto it = rules.begin(); it != rules.end(); ++it) {
      absl::string_view prefix = it->first;
      if (!absl::ConsumeSuffix(&prefix, "*") || !absl::StartsWith(label, prefix)) continue;
      if (best == rules.end() || it->first.size() > best->first.size()) best = it;
    }
    return best;
  }
  std::vector<int> task_;
};

class NgramIntent final : public IntentModel {
 public:
  NgramIntent(NgramClassifier model, Mapping mapping, std::vector<std::string> tasks)
      : model_(std::move(model)), mapping_(std::move(mapping)), tasks_(std::move(tasks)) {}
  const std::vector<std::string>& tasks() const override { return tasks_; }
  absl::Status Infer(absl::string_view text, absl::Span<double> intent) const override {
    mapping_.Apply(model_.Infer(text), intent);
    return absl::OkStatus();
  }

 private:
  NgramClassifier model_;
  Mapping mapping_;
  std::vector<std::string> tasks_;
};
// The BERT-style encoder, dense or pruned by SHRP: better on unlike wordings, some milliseconds a
// query on one core.
class EncoderIntent final : public IntentModel {
 public:
  EncoderIntent(Encoder model, Mapping mapping, std::vector<std::string> tasks)
      : model_(std::move(model)), mapping_(std::move(mapping)), tasks_(std::move(tasks)) {}
  const std::vector<std::string>& tasks() const override { return tasks_; }
  absl::Status Infer(absl::string_view text, absl::Span<double> intent) const override {
    const std::vector<int32_t> ids =
        model_.tokenizer()->Encode(std::string(text.substr(0, NgramClassifier::kMaxText)));
    if (ids.empty()) {
      std::fill(intent.begin(), intent.end(), 1.0 / static_cast<double>(intent.size()));
      return absl::OkStatus();
    }
    InlineExecutor one;
    SLUICE_ASSIGN_OR_RETURN(const Encoder::Result r, model_.Run({ids}, one));
    std::vector<double> p(r.logits.begin(), r.logits.end());
    const double top = *std::max_element(p.begin(), p.end());
    for (double& x : p) x = std::exp(x - top);
    mapping_.Apply(p, intent);
    return absl::OkStatus();
  }

 private:
  Encoder model_;
  Mapping mapping_;
  std::vector<std::string> tasks_;
};
}  // namespace

absl::StatusOr<std::unique_ptr<IntentModel>> LoadIntentModel(const std::string& path,
                                                             const std::vector<std::string>& tasks,
                                                             const IntentLabels& renamed) {
  SLUICE_ASSIGN_OR_RETURN(const Gguf file, Gguf::Open(path));
  const absl::StatusOr<std::string> architecture = file.Text("general.architecture");
  if (architecture.ok() && *architecture == "bert") {
    SLUICE_ASSIGN_OR_RETURN(Encoder encoder, Encoder::Load(file));
    if (!encoder.tokenizer())
      return absl::InvalidArgumentError(absl::StrCat(path, ": the encoder has no tokenizer"));
    SLUICE_ASSIGN_OR_RETURN(Mapping mapping, Mapping::Of(encoder.labels(), tasks, renamed));
    return std::make_unique<EncoderIntent>(std::move(encoder), std::move(mapping), tasks);
  }
  SLUICE_ASSIGN_OR_RETURN(const std::vector<std::string>* labels,
                          file.Texts("sluice.intent.labels"));
  SLUICE_ASSIGN_OR_RETURN(Mapping mapping, Mapping::Of(*labels, tasks, renamed));
  SLUICE_ASSIGN_OR_RETURN(NgramClassifier model, NgramClassifier::Create(file, *labels));
  return std::make_unique<NgramIntent>(std::move(model), std::move(mapping), tasks);
}
SLUICE_END_NAMESPACE
