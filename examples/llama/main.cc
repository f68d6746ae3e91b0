// Measures an unmodified llama.cpp with and without the Sluice backend: perplexity, planted facts,
// prefill and decode. Every measurement runs in a process of its own, plain and routed in turn, as
// people load the backend; a table over contexts (contexts.h) is made in one.
#include <sys/wait.h>
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>
#include <vector>

#include "absl/strings/str_cat.h"
#include "sluice/api/check.h"
#include "sluice/examples/llama/contexts.h"
#include "sluice/examples/llama/host.h"
#include "sluice/examples/llama/options.h"
#include "sluice/examples/llama/random_model.h"
#include "sluice/runtime/host/engine.h"
#include "sluice/runtime/host/facts.h"
#include "sluice/runtime/host/policy.h"
#include "sluice/runtime/kernels/softmax/softmax.h"
#include "sluice/runtime/lab/evaluate/statistics.h"
#include "sluice/runtime/lab/facts_file.h"
#include "sluice/runtime/text/token_file.h"
#include "sluice/runtime/weights/gguf.h"

namespace {
using nlohmann::json;
using sluice::host::FactPrompt;
using sluice::lab::Median;
using sluice::llama::BackendConfig;
using sluice::llama::ConfigFile;
using sluice::llama::Context;
using sluice::llama::Host;
using sluice::llama::Logits;
using sluice::llama::Options;
double Seconds(std::chrono::steady_clock::time_point from) {
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - from).count();
}

// One process: what llama.cpp makes of the documents, as one line of JSON.
class Measurement {
 public:
  explicit Measurement(const Options& o) : o_(o) {}
  absl::Status Run() {
    SLUICE_RETURN_IF_ERROR(Open());
    std::vector<double> prefill, decode;
    for (int d = 0; d < o_.documents; ++d) {
      const auto text = held_.begin() + int64_t{d} * o_.context;
      const FactPrompt p =
          sluice::host::PlantFacts(*tokenizer_, {text, text + o_.context}, o_.context,
                                   o_.facts.count, static_cast<uint64_t>(d) + 1, o_.facts.wording);
      context_->Clear();
      const auto from = std::chrono::steady_clock::now();
      SLUICE_RETURN_IF_ERROR(Prefill(p));
      prefill.push_back(Seconds(from));
      const auto steps = std::chrono::steady_clock::now();
      SLUICE_RETURN_IF_ERROR(Decode(p));
      decode.push_back(Seconds(steps) / std::max(1, o_.decode));
    }
    json j = {{"prefill_s", Median(prefill)}, {"decode_ms", 1e3 * Median(decode)}};
    if (o_.quality) {
      j["perplexity"] = std::exp(nll_ / static_cast<double>(counted_));
      j["facts"] = static_cast<double>(right_) / static_cast<double>(std::max<int64_t>(1, asked_));
    }
    std::printf("%s\n", j.dump().c_str());
    return absl::OkStatus();
  }

 private:
  absl::Status Open() {
    SLUICE_RETURN_IF_ERROR(ReadInputs());
    SLUICE_ASSIGN_OR_RETURN(host_, Host::Load(o_.model, o_.libs, o_.threads, o_.poll));
    constexpr int kMore = 256;  // than the document: questions, answers and steps
    SLUICE_ASSIGN_OR_RETURN(context_, host_->NewContext({.tokens = o_.context + kMore,
                                                         .ubatch = o_.ubatch,
                                                         .auto_flash = o_.auto_flash}));
    vocab_ = host_->vocabulary();
    return absl::OkStatus();
  }
  absl::Status ReadInputs() {
    SLUICE_ASSIGN_OR_RETURN(const sluice::Gguf gguf, sluice::Gguf::Open(o_.model));
    auto tokenizer = sluice::Tokenizer::Load(gguf);
    auto held = sluice::ReadTokens(o_.tokens, o_.skip, int64_t{o_.context} * o_.documents);
    if (!tokenizer.ok() || !held.ok())
      return absl::InvalidArgumentError("tokenizer or tokens cannot be read");
    if (static_cast<int64_t>(held->size()) < int64_t{o_.context} * o_.documents)
      return absl::InvalidArgumentError(absl::StrCat(o_.tokens, ": ", held->size(),
                                                     " tokens are fewer than ", o_.documents,
                                                     " documents of ", o_.context));
    tokenizer_.emplace(*std::move(tokenizer));
    held_ = *std::move(held);
    return absl::OkStatus();
  }

  absl::Status Prefill(const FactPrompt& p) {
    const absl::Span<const int32_t> tokens(p.tokens);
    if (!o_.quality) return context_->Prefill(tokens, 0);
    for (size_t at = 0; at < tokens.size(); at += o_.ubatch) {
      const auto pass = tokens.subspan(at, o_.ubatch);
      SLUICE_RETURN_IF_ERROR(context_->Pass(pass, static_cast<int64_t>(at), Logits::kAll));
      for (size_t i = 0; i < pass.size(); ++i)
        Judge(p, at + i + 1, context_->LogitsOf(static_cast<int32_t>(i)));
    }
    return absl::OkStatus();
  }
  // What the logits say of the token that follows: planted answers for facts, text for perplexity.
  void Judge(const FactPrompt& p, size_t next, const float* logits) {
    if (next >= p.tokens.size()) return;
    const int32_t want = p.tokens[next];
    if (p.answer[next] != 0) {
      ++asked_;
      right_ += Largest(logits) == want;
    }
    if (p.text[next] == 0) return;
    nll_ += static_cast<double>(sluice::kernels::LogSumExp(logits, vocab_) - logits[want]);
    ++counted_;
  }
  absl::Status Decode(const FactPrompt& p) {
    int32_t token = p.tokens.back();
    for (int s = 0; s < o_.decode; ++s) {
      SLUICE_RETURN_IF_ERROR(
          context_->Pass({&token, 1}, static_cast<int64_t>(p.tokens.size()) + s, Logits::kLast));
      token = Largest(context_->LogitsOf(0));
    }
    return absl::OkStatus();
  }
  int32_t Largest(const float* logits) const {
    return static_cast<int32_t>(std::max_element(logits, logits + vocab_) - logits);
  }

  const Options& o_;
  std::optional<sluice::Tokenizer> tokenizer_;
  std::vector<int32_t> held_;
  std::unique_ptr<Host> host_;
  std::unique_ptr<Context> context_;
  int vocab_ = 0;
  double nll_ = 0;
  int64_t counted_ = 0, right_ = 0, asked_ = 0;
};
int Child(const Options& o) {
  const absl::Status status = Measurement(o).Run();
  if (status.ok()) return 0;
  std::fprintf(stderr, "%s\n", std::string(status.message()).c_str());
  return 1;
}

// Runs this program again as a child, with or without the backend.
absl::StatusOr<json> Run(std::vector<std::string> args, const std::string& backend,
                         const std::string& config) {
  int pipe_ends[2];
  if (pipe(pipe_ends) != 0) return absl::InternalError("pipe failed");
  args.insert(args.begin(), "llama_compare");
  args.push_back("--child");
  const pid_t pid = fork();
  if (pid == 0) {
    dup2(pipe_ends[1], 1);
    close(pipe_ends[0]);
    close(pipe_ends[1]);
    if (backend.empty()) {
      unsetenv("GGML_BACKEND_PATH");
    } else {
      setenv("GGML_BACKEND_PATH", backend.c_str(), 1);
      setenv("SLUICE_GGML_CONFIG", config.c_str(), 1);
    }
    std::vector<char*> argv;
    argv.reserve(args.size() + 1);
    for (std::string& a : args) argv.push_back(a.data());
    argv.push_back(nullptr);
    execv("/proc/self/exe", argv.data());
    _exit(127);
  }
  close(pipe_ends[1]);
  std::string out;
  char buffer[4096];
  for (ssize_t n; (n = read(pipe_ends[0], buffer, sizeof buffer)) > 0;) out.append(buffer, n);
  close(pipe_ends[0]);
  int status = 0;
  waitpid(pid, &status, 0);
  if (status != 0) return absl::InternalError(absl::StrCat("a run ended with status ", status));
  json j = json::parse(out, nullptr, false);
  if (j.is_discarded()) return absl::InternalError(absl::StrCat("a run said: ", out));
  return j;
}

absl::Status CompareQuality(const Options& o, std::vector<std::string> args,
                            const std::string& config) {
  args.push_back("--quality");
  const auto plain = Run(args, "", config);
  const auto routed = Run(args, o.backend, config);
  if (!plain.ok()) return plain.status();
  if (!routed.ok()) return routed.status();
  const double plain_perplexity = (*plain)["perplexity"];
  const double plain_facts = (*plain)["facts"];
  const double perplexity = (*routed)["perplexity"];
  const double facts = (*routed)["facts"];
  std::printf(
      "%-10s %12s %8s\n%-10s %12.4f %8.3f\n%-10s %12.4f %8.3f   (perplexity %+.3f %%, facts %+.1f "
      "points)\n",
      "", "perplexity", "facts", "llama.cpp", plain_perplexity, plain_facts, "sluice", perplexity,
      facts, 100 * (perplexity / plain_perplexity - 1), 100 * (facts - plain_facts));
  std::fflush(stdout);
  return absl::OkStatus();
}
absl::Status CompareSpeed(const Options& o, const std::vector<std::string>& args,
                          const std::string& config) {
  sluice::llama::Pairs prefill, decode;
  for (int r = 0; r < o.repeats; ++r) {
    const auto plain = Run(args, "", config);
    const auto routed = Run(args, o.backend, config);
    if (!plain.ok()) return plain.status();
    if (!routed.ok()) return routed.status();
    prefill.AddTimes((*plain)["prefill_s"], (*routed)["prefill_s"]);
    decode.AddTimes((*plain)["decode_ms"], (*routed)["decode_ms"]);
  }
  if (o.repeats == 0) return absl::OkStatus();
  std::printf(
      "prefill    %.3f s -> %.3f s, %.2fx; decode %.2f ms -> %.2f ms, %.2fx (medians of %d runs of "
      "each in turn)\n",
      Median(prefill.plain), Median(prefill.routed), Median(prefill.compared), Median(decode.plain),
      Median(decode.routed), Median(decode.compared), o.repeats);
  return absl::OkStatus();
}
absl::Status Compare(const Options& o, const std::vector<std::string>& args) {
  const ConfigFile config(BackendConfig(o));
  std::printf("%d tokens, %d documents, %d threads, passes of %d\n", o.context, o.documents,
              o.threads, o.ubatch);
  SLUICE_RETURN_IF_ERROR(CompareQuality(o, args, config.path()));
  return CompareSpeed(o, args, config.path());
}

void AddOptions(CLI::App& app, Options& o) {
  app.add_option(
         "--model", o.model,
         "GGUF file; or random:SHAPE-TYPE, random weights in the shape 1B, 4B or 8B of type "
         "q8_0 or q4_0 (random:1B-q8_0), of which speed alone is measured")
      ->capture_default_str();
  app.add_option("--tokens", o.tokens, "held-out token ids: .u16, .u32 (little-endian) or .npy")
      ->capture_default_str();
  app.add_option("--skip", o.skip, "tokens to skip")->capture_default_str();
  app.add_option("--libs", o.libs, "folder of llama.cpp's shared libraries")->capture_default_str();
  app.add_option("--backend", o.backend, "libggml-sluice.so")->capture_default_str();
  app.add_option("--attention", o.attention,
                 "router of prefill (and of decode, unless --decode-attention)")
      ->capture_default_str();
  app.add_option("--decode-attention", o.decode_attention, "router of decode");
  app.add_option("--decode-min-keys", o.decode_min,
                 "steps over fewer keys stay with llama.cpp; -1: where it does not pay")
      ->capture_default_str();
  app.add_option("--counters", o.counters, "file for the backend's counters");
  app.add_option("--context", o.context, "tokens of a document")
      ->capture_default_str()
      ->check(CLI::Range(64, 1 << 20));
  app.add_option("--documents", o.documents, "documents")
      ->capture_default_str()
      ->check(CLI::Range(1, 1000));
  app.add_option("--facts", o.facts_given,
                 "facts planted in a document [16]; 0: the text as it is; or a JSON file of their "
                 "wording, or both (`sluice facts --help`)")
      ->type_name("N|FILE")
      ->allow_extra_args(false);
  app.add_flag("--spaces", o.spaces, "plant facts between spaces, as some models learned them");
  app.add_option(
         "--poll", o.poll,
         "how long llama.cpp's threads wait in a loop for work, as its own --poll; -1: it keeps "
         "no threads, as in programs that attach no pool")
      ->capture_default_str()
      ->check(CLI::Range(-1, 100));
  app.add_option("--threads", o.threads, "of both")
      ->capture_default_str()
      ->check(CLI::Range(1, 1024));
  app.add_option("--ubatch", o.ubatch, "tokens a pass")
      ->capture_default_str()
      ->check(CLI::Range(1, 65536));
  app.add_option("--steps", o.decode, "decode steps after each document")->capture_default_str();
  app.add_option("--repeats,--pairs", o.repeats, "timed runs of each, in turn; 0: quality only")
      ->capture_default_str()
      ->check(CLI::Range(0, 1000));
  app.add_option("--contexts", o.contexts,
                 "a table of speed alone over these contexts (512,2048,8192); a random model's, if "
                 "none are given")
      ->delimiter(',')
      ->check(CLI::Range(16, 1 << 20));
  app.add_flag("--steps-only", o.steps_only,
               "of the table: prompts are read once, by the backend, and llama.cpp's side gets a "
               "copy of the cache; long contexts in a fraction of the time");
  app.add_flag(
      "--overhead", o.overhead,
      "what handing a step to the backend costs a layer: steps over a few keys, by a policy "
      "that reads two");
  app.add_option("--seed", o.seed, "of random weights and their tokens")->capture_default_str();
  app.add_flag("--auto-flash", o.auto_flash,
               "let llama.cpp decide about flash attention (-fa auto)");
  app.add_flag("--quality", o.quality)->group("");
  app.add_flag("--child", o.child)->group("");
}

// Speed alone: over contexts, or of steps that have nothing to do.
absl::Status MeasureSpeed(Options& o, bool context_given) {
  if (sluice::llama::IsRandomModel(o.model)) {
    SLUICE_RETURN_IF_ERROR(sluice::llama::ParseRandomModel(o.model).status());
    if (!o.facts_given.empty())
      return absl::InvalidArgumentError(
          "random weights know no facts; --facts wants a model that was trained");
  }
  if (o.repeats < 1 || o.decode < 1)
    return absl::InvalidArgumentError(absl::StrCat(
        "--repeats ", o.repeats, " and --steps ", o.decode, ": at least 1 of both measures speed"));
  if (o.overhead && o.steps_only)
    return absl::InvalidArgumentError(
        "--overhead and --steps-only are two measurements; give one of them");
  if (o.overhead) return sluice::llama::MeasureOverhead(o);
  if (o.contexts.empty() && context_given) o.contexts = {o.context};
  if (o.contexts.empty()) o.contexts = {512, 2048, 8192};
  std::sort(o.contexts.begin(), o.contexts.end());
  o.contexts.erase(std::unique(o.contexts.begin(), o.contexts.end()), o.contexts.end());
  return o.steps_only ? sluice::llama::CompareSteps(o) : sluice::llama::CompareContexts(o);
}
}  // namespace

int main(int argc, char** argv) {
  CLI::App app{
      "Runs a GGUF model in an unmodified llama.cpp, with its own CPU flash attention and with "
      "Sluice's backend in turn."};
  Options o;
  o.model = sluice::host::ModelsFolder() + "/sluice-mini-q8_0.gguf";
  o.tokens = sluice::host::ModelsFolder() + "/sluice-mini-eval.u16";
  AddOptions(app, o);
  app.footer(
      "Examples:\n"
      "  llama_compare --context 16384 --attention 'mean_pool:k=32'\n"
      "  llama_compare --model random:1B-q8_0 --contexts 512,2048,8192 --pairs 7   speed, without "
      "a model\n"
      "  llama_compare --model random:1B-q8_0 --contexts 32768 --steps-only \\\n"
      "      --attention sink_window:sink=64,window=256 --decode-attention dense");
  CLI11_PARSE(app, argc, argv);
  const absl::Status facts = sluice::lab::ReadFactChoice(o.facts_given, 0, o.spaces, o.facts);
  if (!facts.ok()) {
    std::fprintf(stderr, "error: %s\n", std::string(facts.message()).c_str());
    return 1;
  }
  if (o.child) return Child(o);
  const bool speed =
      o.overhead || o.steps_only || !o.contexts.empty() || sluice::llama::IsRandomModel(o.model);
  const absl::Status status =
      speed ? MeasureSpeed(o, app.count("--context") > 0) : Compare(o, {argv + 1, argv + argc});
  if (status.ok()) return 0;
  std::fprintf(stderr, "error: %s\n", std::string(status.message()).c_str());
  return 1;
}
