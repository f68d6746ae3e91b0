// evaluate, calibrate, search-schedule: learned methods, their quality and what they are made from.
#include "sluice/api/check.h"
#include "sluice/runtime/cli/lab_options.h"
#include "sluice/runtime/host/policy.h"
#include "sluice/runtime/lab/calibrate.h"
#include "sluice/runtime/lab/evaluate/evaluate.h"
#include "sluice/runtime/lab/score.h"

SLUICE_BEGIN_NAMESPACE
namespace cli {
namespace {
// `model_path` empty: the bundled model that the method is for, with its held-out text.
absl::Status Evaluate(const std::string& method, std::string model_path, lab::EvaluateOptions o) {
  if (method == "shrp") return lab::EvaluateShrp(o);  // an encoder; it needs no language model
  const bool experts = method == "small_thinker";
  if (model_path.empty()) {
    model_path = experts ? o.folder + "/sluice-mini-moe-q8_0.gguf" : LabModel().path;
    if (experts && o.tokens.empty()) o.tokens = o.folder + "/sluice-mini-moe-eval.u16";
  }
  const auto model = host::LoadModel(model_path);
  if (!model.ok()) return model.status();
  SLUICE_RETURN_IF_ERROR(lab::CheckLength("a prompt", o.length, 512, *model));
  if (o.speed_length > 0)
    SLUICE_RETURN_IF_ERROR(lab::CheckLength("a timed prompt", o.speed_length, 256, *model));
  if (method == "flux_attention") return lab::EvaluateFluxAttention(*model, o);
  if (method == "informed_routing") return lab::EvaluateInformedRouting(*model, o);
  if (experts) return lab::EvaluateSmallThinker(*model, o);
  if (method == "spt") return lab::EvaluateSpt(*model, o);
  return lab::EvaluateFtp(*model, o);
}
void AddEvaluate(CLI::App& app, const Exit& exit) {
  struct Args {
    std::string method, model;
    lab::EvaluateOptions o;
  };
  auto a = std::make_shared<Args>();
  a->o.folder = host::ModelsFolder();
  a->o.data = "data";
  auto* s = app.add_subcommand("evaluate",
                               "Trained quality of a learned method, over its training seeds");
  AddEvaluateAttention(*s, exit);
  s->add_option("method", a->method, "learned method; or the command attention")
      ->check(CLI::IsMember(
          {"flux_attention", "informed_routing", "ftp", "shrp", "small_thinker", "spt"}));
  s->add_option("--prompts", a->o.prompts, "prompts a task; small_thinker, spt: windows of text")
      ->capture_default_str()
      ->check(Allowed<int64_t>(1, 1000));
  s->add_option("--length", a->o.length, "tokens of a prompt, at most the model's context")
      ->capture_default_str()
      ->check(Allowed<int64_t>(512, kMostTokens));
  s->add_option("--speed-length", a->o.speed_length, "tokens of a timed prompt; 0: no timing")
      ->capture_default_str()
      ->check(Allowed<int64_t>(0, kMostTokens));
  s->add_option("--repeats", a->o.repeats, "timed repetitions")
      ->capture_default_str()
      ->check(Allowed<int64_t>(1, 1000));
  AddThreads(*s, a->o.threads);
  s->add_option("--weights", a->o.folder, "folder of the trained weights and held-out tokens")
      ->capture_default_str();
  s->add_option("--model", a->model,
                absl::StrCat("GGUF file that the weights were trained for (default: ",
                             LabModel().path, "; small_thinker: the bundled Mixture of Experts)"));
  s->add_option("--tokens", a->o.tokens,
                absl::StrCat("held-out text of --model, ", kTokensHelp, " (default: the bundled)"));
  s->add_option("--data", a->o.data, "shrp: folder of the query sets pool_a and mmlu_pro")
      ->capture_default_str();
  s->footer(
      "Example: sluice evaluate flux_attention --prompts 12\n"
      "         sluice evaluate attention --context 4k");
  s->callback([=] {
    if (!s->get_subcommands().empty()) return;  // has done its work
    if (a->method.empty())
      return exit(Fail(absl::InvalidArgumentError(
          "evaluate: nothing was named; allowed: attention, flux_attention, informed_routing, ftp, "
          "shrp, small_thinker, spt")));
    exit(Done(Evaluate(a->method, a->model, a->o)));
  });
}
// What a fit reads; returns the option of its text. `o` must outlive the command.
template <class Run>
CLI::Option* AddFit(CLI::App& s, Run& o) {
  s.add_option("--model", o.model, "GGUF file")->capture_default_str();
  CLI::Option* tokens = s.add_option("--tokens", o.tokens, kTokensHelp);
  s.add_option("--skip", o.skip, "tokens to skip")
      ->capture_default_str()
      ->check(Allowed<int64_t>(0, kMostTokens));
  s.add_option("--count", o.count, "tokens to fit on")
      ->capture_default_str()
      ->check(Allowed<int64_t>(2, kMostTokens));
  s.add_option("--window", o.fit.window, "tokens a sequence, at most the model's context")
      ->capture_default_str()
      ->check(Allowed<int64_t>(2, kMostTokens));
  return tokens;
}
void AddCalibrateSpt(CLI::App& calibrate, const Exit& exit) {
  auto o = std::make_shared<lab::CalibrateSptRun>();
  o->model = LabModel().path;
  auto* s = calibrate.add_subcommand(
      "spt", "Cut a dense model's FFN into routed blocks, by what its neurons do on a text");
  AddFit(*s, *o)->required();
  s->add_option("--blocks", o->fit.blocks, "of the hidden neurons, which they divide")
      ->capture_default_str()
      ->check(Allowed<int64_t>(1, 1 << 20));
  s->add_option("--turns", o->fit.turns, "of the clustering, at most")
      ->capture_default_str()
      ->check(Allowed<int64_t>(1, 10000));
  s->add_option("--ridge", o->fit.ridge, "regularisation of the router")
      ->capture_default_str()
      ->check(Allowed(1e-12, 1e12));
  AddThreads(*s, o->fit.threads);
  s->add_option("--out", o->out, "GGUF file to write")->capture_default_str();
  s->footer(
      "Example: sluice calibrate spt --tokens eval.u16 --count 8192 --out spt.gguf\n"
      "         sluice perplexity --tokens eval.u16 --router expert/spt:weights=spt.gguf,m=3");
  s->callback([=] { exit(Done(lab::RunCalibrateSpt(*o))); });
}
void AddCalibrate(CLI::App& app, const Exit& exit) {
  auto o = std::make_shared<lab::CalibrateRun>();
  o->model = LabModel().path;
  auto* s = app.add_subcommand(
      "calibrate",
      "Fit a learned method in closed form, without training: Informed Routing's forecasters and "
      "routers, or with the command spt SPT's routed FFN");
  AddCalibrateSpt(*s, exit);
  AddFit(*s, *o);
  s->add_option("--rank", o->fit.rank, "of the forecasters; 0: skip")
      ->capture_default_str()
      ->check(Allowed<int64_t>(0, 1 << 20));
  s->add_option("--ridge", o->fit.ridge, "regularisation")
      ->capture_default_str()
      ->check(Allowed(1e-12, 1e12));
  s->add_option("--sparsity", o->fit.sparsity, "rows approximated, over all units")
      ->capture_default_str()
      ->check(Allowed(0.0, 1.0));
  AddThreads(*s, o->fit.threads);
  s->add_option("--out", o->out, "GGUF file to write")->capture_default_str();
  s->footer(
      "Example: sluice calibrate --tokens eval.u16 --count 16384 --sparsity 0.25 --out "
      "informed.gguf");
  s->callback([=] {
    if (!s->get_subcommands().empty()) return;  // has done its work
    if (o->tokens.empty())
      return exit(Fail(absl::InvalidArgumentError("calibrate: --tokens is required")));
    exit(Done(lab::RunCalibrate(*o)));
  });
}
void AddSearchSchedule(CLI::App& app, const Exit& exit) {
  auto o = std::make_shared<lab::ScheduleRun>();
  o->model = LabModel().path;
  o->tokens = host::ModelsFolder() + "/sluice-mini-eval.u16";
  auto* s = app.add_subcommand("search-schedule",
                               "Search the sparsity of every block for FTP by a genetic algorithm; "
                               "prints the schedule");
  s->add_option("--model", o->model, "GGUF file")->capture_default_str();
  s->add_option("--tokens", o->tokens,
                absl::StrCat(kTokensHelp, ", of which the second half is used"))
      ->capture_default_str();
  s->add_option("--sparsity", o->search.sparsity, "mean over the blocks")
      ->capture_default_str()
      ->check(Allowed(0.0, 1.0));
  s->add_option("--prompts", o->search.prompts, "prompts of each of two tasks")
      ->capture_default_str()
      ->check(Allowed<int64_t>(1, 10000));
  s->add_option("--length", o->search.length, "tokens of a prompt")
      ->capture_default_str()
      ->check(Allowed<int64_t>(256, kMostTokens));
  s->add_option("--population", o->search.population, "schedules a generation")
      ->capture_default_str()
      ->check(Allowed<int64_t>(2, 10000));
  s->add_option("--generations", o->search.generations, "generations")
      ->capture_default_str()
      ->check(Allowed<int64_t>(1, 10000));
  s->add_option("--seed", o->search.seed, "of the search")
      ->capture_default_str()
      ->check(Allowed<uint64_t>(0, UINT64_MAX));
  s->add_option("--weights", o->weights, "GGUF of a trained router (default: the static router)");
  s->add_option("--start", o->search.start, "schedule to start from, one value a block")
      ->delimiter(',')
      ->check(Allowed(0.0, 1.0));
  AddThreads(*s, o->search.threads);
  s->footer("Example: sluice search-schedule --sparsity 0.3 --prompts 4");
  s->callback([=] { exit(Done(lab::RunSearchSchedule(*o))); });
}
}  // namespace

void AddLearned(CLI::App& app, const Exit& exit) {
  AddEvaluate(app, exit);
  AddCalibrate(app, exit);
  AddSearchSchedule(app, exit);
}
}  // namespace cli
SLUICE_END_NAMESPACE
