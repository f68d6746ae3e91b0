#include "sluice/examples/llama/contexts.h"

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <ctime>
#include <memory>
#include <optional>
#include <thread>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "ggml-backend.h"
#include "sluice/api/check.h"
#include "sluice/examples/llama/host.h"
#include "sluice/examples/llama/random_model.h"
#include "sluice/plugins/ggml/routed_attention.h"
#include "sluice/runtime/base/counter_rng.h"
#include "sluice/runtime/lab/evaluate/statistics.h"
#include "sluice/runtime/text/token_file.h"

SLUICE_BEGIN_NAMESPACE
namespace llama {
namespace {
using Clock = std::chrono::steady_clock;
using lab::ClearNote;
using lab::Median;
using lab::Note;
using lab::PrintRow;

double Milliseconds(Clock::time_point from) {
  return std::chrono::duration<double, std::milli>(Clock::now() - from).count();
}

double CpuMilliseconds() { return 1e3 * static_cast<double>(std::clock()) / CLOCKS_PER_SEC; }

// What one side took at one context.
struct Took {
  double prefill_ms = 0;  // of all tokens up to here
  double step_ms = 0;
  double step_cpu_ms = 0;  // of all threads, those that wait in a loop too
};
std::string Speed(const Pairs& p) {
  const auto [least, most] = std::minmax_element(p.compared.begin(), p.compared.end());
  return absl::StrFormat("%5.2fx [%.2f, %.2f]", Median(p.compared), *least, *most);
}
void PrintMeaning(const Options& o) {
  std::printf(
      "\nmedians of %d pairs, each side first in every other; times as fast: median of the "
      "pairs' ratios [least, most]\n",
      o.repeats);
}
void PrintOverhead(const char* name, const Pairs& p) {
  const auto [least, most] = std::minmax_element(p.compared.begin(), p.compared.end());
  PrintRow("%-8s  %11.3f  %11.3f  %8.1f us [%.1f, %.1f]\n", name, Median(p.plain), Median(p.routed),
           Median(p.compared), *least, *most);
}

absl::Status CheckPolicy(const Options& o) {
  const auto config = ggml::ParseConfig(BackendConfig(o));
  if (config.ok()) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat("the backend's settings, ", config.status().message()));
}

// Two contexts of one model, of which the second knows the backend.
class Bench {
 public:
  // Steps are taken `rounds` times at each context, for one time of a step.
  static absl::StatusOr<std::unique_ptr<Bench>> Create(const Options& o, int rounds) {
    auto bench = std::make_unique<Bench>(o, rounds);
    SLUICE_RETURN_IF_ERROR(bench->Open());
    return bench;
  }
  Bench(const Options& o, int rounds) : o_(o), rounds_(rounds), config_(BackendConfig(o)) {}

  int layers() const { return host_->layers(); }
  const std::string& about() const { return about_; }

  // One pair, by context: llama.cpp's and the backend's.
  using Pair = std::vector<std::pair<Took, Took>>;
  absl::StatusOr<Pair> Run(int pair) {
    std::vector<Took> took[2];
    for (int turn = 0; turn < 2; ++turn) {
      const int side = (pair + turn) % 2;  // each begins as often as the other
      WaitForIdleWorkers();
      SLUICE_ASSIGN_OR_RETURN(
          took[side], Walk(*sides_[side], absl::StrFormat("pair %d of %d, %s", pair + 1, o_.repeats,
                                                          side == 0 ? "llama.cpp" : "sluice")));
    }
    Pair both;
    for (size_t c = 0; c < o_.contexts.size(); ++c) both.emplace_back(took[0][c], took[1][c]);
    return both;
  }
  // A step of both sides at each context, which begin with the same cache: the backend's.
  absl::StatusOr<std::vector<Pairs>> RunSteps() {
    Context& plain = *sides_[0];
    Context& routed = *sides_[1];
    std::vector<Pairs> steps(o_.contexts.size());
    int64_t done = 0;
    for (size_t c = 0; c < o_.contexts.size(); ++c) {
      SLUICE_RETURN_IF_ERROR(Grow(routed, done, o_.contexts[c], "prompt").status());
      done = o_.contexts[c];
      SLUICE_RETURN_IF_ERROR(plain.CopyFrom(routed));
      for (int pair = 0; pair < o_.repeats; ++pair) {
        Took took[2];
        for (int turn = 0; turn < 2; ++turn) {
          const int side = (pair + turn) % 2;
          WaitForIdleWorkers();
          Note(absl::StrFormat("%d tokens, pair %d of %d", done, pair + 1, o_.repeats));
          SLUICE_ASSIGN_OR_RETURN(took[side], Steps(*sides_[side], done));
        }
        steps[c].AddTimes(took[0].step_ms, took[1].step_ms);
      }
    }
    return steps;
  }

 private:
  // Workers that still look for work of the other side's would take its time.
  static void WaitForIdleWorkers() { std::this_thread::sleep_for(std::chrono::milliseconds(20)); }
  absl::Status Open() {
    std::string path = o_.model;
    if (IsRandomModel(path)) {
      SLUICE_ASSIGN_OR_RETURN(path, WriteModel());
    } else {
      about_ = path;
    }
    // The first context is llama.cpp's alone, whatever the environment says.
    unsetenv("GGML_BACKEND_PATH");
    setenv("SLUICE_GGML_CONFIG", config_.path().c_str(), 1);
    Note("loading " + o_.model);
    SLUICE_ASSIGN_OR_RETURN(host_, Host::Load(path, o_.libs, o_.threads, o_.poll));
    ClearNote();
    SLUICE_RETURN_IF_ERROR(ReadText());
    const ContextOptions c = {
        .tokens = o_.contexts.back() + o_.decode, .ubatch = o_.ubatch, .auto_flash = o_.auto_flash};
    SLUICE_ASSIGN_OR_RETURN(sides_[0], host_->NewContext(c));
    if (ggml_backend_load(o_.backend.c_str()) == nullptr)
      return absl::InvalidArgumentError(o_.backend + ": llama.cpp cannot load this backend");
    SLUICE_ASSIGN_OR_RETURN(sides_[1], host_->NewContext(c));
    return WarmUp();
  }
  absl::StatusOr<std::string> WriteModel() {
    SLUICE_ASSIGN_OR_RETURN(const RandomModel model, ParseRandomModel(o_.model));
    about_ = Describe(model);
    const int64_t bytes = FileBytes(model);
    SLUICE_ASSIGN_OR_RETURN(TemporaryFile file, TemporaryFile::Create(bytes, o_.model));
    file_.emplace(std::move(file));
    SLUICE_RETURN_IF_ERROR(WriteRandomModel(model, o_.seed, file_->fd(), [&](int64_t written) {
      Note(absl::StrFormat("writing %s, %3d %%", o_.model, 100 * written / bytes));
    }));
    ClearNote();
    return file_->path();
  }
  absl::Status ReadText() {
    const int64_t wanted = o_.contexts.back() + o_.decode;
    if (file_.has_value()) {
      const auto vocabulary = static_cast<uint64_t>(host_->vocabulary());
      for (int64_t i = 0; i < wanted; ++i) {
        const uint64_t bits = RandomBits({.seed = o_.seed, .item = static_cast<uint64_t>(i)});
        text_.push_back(static_cast<int32_t>(bits % vocabulary));
      }
      return absl::OkStatus();
    }
    SLUICE_ASSIGN_OR_RETURN(text_, ReadTokens(o_.tokens, o_.skip, wanted));
    return absl::OkStatus();
  }
  // Reads the weights once, and what each side makes at its first pass.
  absl::Status WarmUp() {
    const absl::Span<const int32_t> text(text_);
    const int64_t first = std::min<int64_t>(o_.ubatch, o_.contexts.front());
    for (const auto& side : sides_) {
      SLUICE_RETURN_IF_ERROR(side->Prefill(text.first(first), 0));
      SLUICE_RETURN_IF_ERROR(side->Pass(text.subspan(first, 1), first, Logits::kLast));
      side->Clear();
    }
    return absl::OkStatus();
  }

  // A prompt that grows from one context to the next; at each some steps, which are taken back.
  absl::StatusOr<std::vector<Took>> Walk(Context& context, const std::string& what) const {
    context.Clear();
    std::vector<Took> took;
    double prefill = 0;
    int64_t done = 0;
    for (int64_t tokens : o_.contexts) {
      SLUICE_ASSIGN_OR_RETURN(const double grown, Grow(context, done, tokens, what));
      prefill += grown;
      done = tokens;
      SLUICE_ASSIGN_OR_RETURN(Took steps, Steps(context, done));
      steps.prefill_ms = prefill;
      took.push_back(steps);
    }
    return took;
  }

  // Reads on from `done` tokens to `tokens`, in milliseconds.
  absl::StatusOr<double> Grow(Context& context, int64_t done, int64_t tokens,
                              const std::string& what) const {
    const absl::Span<const int32_t> text(text_);
    double took = 0;
    while (done < tokens) {
      Note(absl::StrFormat("%s, %d of %d tokens", what, done, o_.contexts.back()));
      const int64_t n = std::min<int64_t>(o_.ubatch, tokens - done);
      const auto from = Clock::now();
      SLUICE_RETURN_IF_ERROR(context.Prefill(text.subspan(done, n), done));
      took += Milliseconds(from);
      done += n;
    }
    return took;
  }
  // The steps after so many tokens, each time from there; the mean of one.
  absl::StatusOr<Took> Steps(Context& context, int64_t tokens) const {
    const absl::Span<const int32_t> text(text_);
    Took took;
    for (int round = 0; round < rounds_; ++round) {
      const double cpu = CpuMilliseconds();
      const auto from = Clock::now();
      for (int64_t at = tokens; at < tokens + o_.decode; ++at)
        SLUICE_RETURN_IF_ERROR(context.Pass(text.subspan(at, 1), at, Logits::kLast));
      took.step_ms += Milliseconds(from) / o_.decode / rounds_;
      took.step_cpu_ms += (CpuMilliseconds() - cpu) / o_.decode / rounds_;
      SLUICE_RETURN_IF_ERROR(context.Truncate(tokens));
    }
    return took;
  }

  const Options& o_;
  const int rounds_;
  const ConfigFile config_;
  std::string about_;
  std::optional<TemporaryFile> file_;
  std::unique_ptr<Host> host_;
  std::unique_ptr<Context> sides_[2];
  std::vector<int32_t> text_;
};
}  // namespace

absl::Status CompareContexts(const Options& o) {
  SLUICE_RETURN_IF_ERROR(CheckPolicy(o));
  SLUICE_ASSIGN_OR_RETURN(const std::unique_ptr<Bench> bench, Bench::Create(o, 1));
  std::vector<Pairs> prefill(o.contexts.size()), decode(o.contexts.size());
  for (int pair = 0; pair < o.repeats; ++pair) {
    SLUICE_ASSIGN_OR_RETURN(const Bench::Pair took, bench->Run(pair));
    for (size_t c = 0; c < took.size(); ++c) {
      prefill[c].AddTimes(took[c].first.prefill_ms, took[c].second.prefill_ms);
      decode[c].AddTimes(took[c].first.step_ms, took[c].second.step_ms);
    }
  }
  ClearNote();
  std::printf("%s\n", bench->about().c_str());
  std::printf("%d threads, passes of %d, %d steps at each context, attention = %s\n\n", o.threads,
              o.ubatch, o.decode, o.attention.c_str());
  std::printf("%8s  %12s %12s  %-20s  %10s %10s  %s\n", "tokens", "prefill, ms", "sluice",
              "  times", "step, ms", "sluice", "  times");
  for (size_t c = 0; c < o.contexts.size(); ++c) {
    PrintRow("%8d  %12.1f %12.1f  %-20s  %10.3f %10.3f  %s\n", o.contexts[c],
             Median(prefill[c].plain), Median(prefill[c].routed), Speed(prefill[c]),
             Median(decode[c].plain), Median(decode[c].routed), Speed(decode[c]));
  }
  PrintMeaning(o);
  return absl::OkStatus();
}

absl::Status CompareSteps(const Options& o) {
  SLUICE_RETURN_IF_ERROR(CheckPolicy(o));
  SLUICE_ASSIGN_OR_RETURN(const std::unique_ptr<Bench> bench, Bench::Create(o, 1));
  SLUICE_ASSIGN_OR_RETURN(const std::vector<Pairs> steps, bench->RunSteps());
  ClearNote();
  std::printf("%s\n", bench->about().c_str());
  std::printf("%d threads, %d steps at each context, attention = %s of prompts, %s of steps\n\n",
              o.threads, o.decode, o.attention.c_str(),
              o.decode_attention.empty() ? o.attention.c_str() : o.decode_attention.c_str());
  std::printf("%8s  %10s %10s  %s\n", "tokens", "step, ms", "sluice", "  times");
  for (size_t c = 0; c < o.contexts.size(); ++c)
    PrintRow("%8d  %10.3f %10.3f  %s\n", o.contexts[c], Median(steps[c].plain),
             Median(steps[c].routed), Speed(steps[c]));
  PrintMeaning(o);
  return absl::OkStatus();
}

absl::Status MeasureOverhead(const Options& given) {
  // A prompt, so that the backend takes the steps after it; steps over as few keys as there can be,
  // since llama.cpp's own attention is in the difference.
  constexpr int kPrompt = 2;
  constexpr int kSteps = 8;
  Options o = given;
  o.contexts = {kPrompt};
  o.attention = "dense";
  o.decode_attention = "sink_window:sink=1,window=1";
  o.decode_min = 0;
  o.decode = kSteps;
  const int rounds = (given.decode + kSteps - 1) / kSteps;
  SLUICE_ASSIGN_OR_RETURN(const std::unique_ptr<Bench> bench, Bench::Create(o, rounds));
  const auto add = [&](Pairs& to, double a, double b) {
    to.Add(a, b, 1e3 * (b - a) / bench->layers());  // ms, ms, us a layer
  };
  Pairs wall, cpu;
  for (int pair = 0; pair < o.repeats; ++pair) {
    SLUICE_ASSIGN_OR_RETURN(const Bench::Pair took, bench->Run(pair));
    const auto& [plain, routed] = took[0];
    add(wall, plain.step_ms, routed.step_ms);
    add(cpu, plain.step_cpu_ms, routed.step_cpu_ms);
  }
  ClearNote();
  std::printf("%s\n", bench->about().c_str());
  std::printf("%d threads, steps over %d to %d keys, of which the backend reads two\n\n", o.threads,
              kPrompt + 1, kPrompt + o.decode);
  std::printf("%-8s  %11s  %11s  %s\n", "", "step, ms", "sluice", "overhead a layer and step");
  PrintOverhead("wall", wall);
  PrintOverhead("CPU", cpu);
  std::printf(
      "\nmedians of %d pairs of %d steps, each side first in every other [least, most]; threads "
      "that "
      "wait in a loop\ncount as CPU time: --threads 1 has none\n",
      o.repeats, rounds * kSteps);
  return absl::OkStatus();
}
}  // namespace llama
SLUICE_END_NAMESPACE
