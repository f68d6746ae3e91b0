#ifndef SLUICE_API_REGISTRY_H_
#define SLUICE_API_REGISTRY_H_
// A value, not a singleton: fill it once, then share it const.
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <utility>

#include "sluice/api/agent_router.h"
#include "sluice/api/attention_router.h"
#include "sluice/api/config.h"
#include "sluice/api/router.h"
#include "sluice/api/version.h"
#include "sluice/api/weight_source.h"

SLUICE_BEGIN_NAMESPACE
// Makes one method from text. `Base` is Router, AttentionRouter or AgentRouter.
template <class Base>
class Factory {
 public:
  virtual ~Factory() = default;
  virtual absl::string_view name() const = 0;
  virtual bool learned() const = 0;          // needs weights
  virtual std::string Describe() const = 0;  // config help, one line a key
  virtual std::string FullBudget()
      const = 0;  // config text at which nothing is skipped; "" when there is none
  virtual absl::StatusOr<std::unique_ptr<const Base>> Create(absl::Span<const KeyValue>,
                                                             const WeightSource* weights) const = 0;
};

// Attention routers say more of themselves.
template <>
class Factory<AttentionRouter> {
 public:
  virtual ~Factory() = default;
  virtual const AttentionTraits& traits() const = 0;
  absl::string_view name() const { return traits().name; }
  virtual bool learned() const = 0;
  virtual std::string Describe() const = 0;
  std::string FullBudget() const { return traits().full_budget; }
  // What Create reads of its weights under this config, for a model of this shape.
  virtual absl::StatusOr<std::vector<WeightKey>> Weights(absl::Span<const KeyValue>,
                                                         const AttentionShape&) const = 0;
  virtual absl::StatusOr<std::unique_ptr<const AttentionRouter>> Create(
      absl::Span<const KeyValue>, const WeightSource* weights) const = 0;
};

// A model from its config text, and where it is learned from its weights.
template <class R>
absl::StatusOr<R> CreateModel(absl::Span<const KeyValue> kvs, const WeightSource* weights) {
  typename R::Config config;
  SLUICE_RETURN_IF_ERROR(ReadConfig(kvs, config));
  if constexpr (LearnedModel<R>) {
    if (weights == nullptr)
      return absl::FailedPreconditionError("needs trained weights and got none: give weights=FILE");
    return R::Create(config, *weights);
  } else {
    return R::Create(config);
  }
}

template <AttentionRouterModel R>
class AttentionFactoryOf final : public Factory<AttentionRouter> {
 public:
  const AttentionTraits& traits() const override {
    static constexpr AttentionTraits kTraits = R::kTraits;
    return kTraits;
  }
  bool learned() const override { return LearnedModel<R>; }
  std::string Describe() const override { return DescribeConfig<typename R::Config>(); }
  absl::StatusOr<std::vector<WeightKey>> Weights(absl::Span<const KeyValue> kvs,
                                                 const AttentionShape& shape) const override {
    typename R::Config config;
    SLUICE_RETURN_IF_ERROR(ReadConfig(kvs, config));
    if constexpr (LearnedModel<R>) return R::Weights(config, shape);
    return std::vector<WeightKey>();
  }
  absl::StatusOr<std::unique_ptr<const AttentionRouter>> Create(
      absl::Span<const KeyValue> kvs, const WeightSource* weights) const override {
    SLUICE_ASSIGN_OR_RETURN(R r, CreateModel<R>(kvs, weights));
    return std::make_unique<const AttentionRouterOf<R>>(std::move(r));
  }
};

template <class Base, template <class> class Bridge, class R>
class FactoryOf final : public Factory<Base> {
 public:
  absl::string_view name() const override { return R::kName; }
  bool learned() const override { return LearnedModel<R>; }
  std::string Describe() const override { return DescribeConfig<typename R::Config>(); }
  std::string FullBudget() const override {
    if constexpr (requires { R::FullBudget(); }) return PrintConfig(R::FullBudget());
    return "";
  }
  absl::StatusOr<std::unique_ptr<const Base>> Create(absl::Span<const KeyValue> kvs,
                                                     const WeightSource* weights) const override {
    SLUICE_ASSIGN_OR_RETURN(R r, CreateModel<R>(kvs, weights));
    return std::make_unique<const Bridge<R>>(std::move(r));
  }
};

template <class Base>
class FactoryMap {
 public:
  absl::Status Add(std::unique_ptr<const Factory<Base>> f) {
    std::string key(f->name());
    if (!map_.emplace(key, std::move(f)).second)
      return absl::AlreadyExistsError(absl::StrCat("'", key, "' is registered twice"));
    return absl::OkStatus();
  }
  // From "name:key=value,...". Learned methods read `weights` during the call, or the file that
  // their text names (weights=FILE).
  absl::StatusOr<std::unique_ptr<const Base>> Create(absl::string_view spec_text,
                                                     const WeightSource* weights = nullptr) const {
    SLUICE_ASSIGN_OR_RETURN(Spec spec, ParseSpec(spec_text));
    SLUICE_ASSIGN_OR_RETURN(const Factory<Base>* factory, Find(spec.name));
    const auto named = [&](const absl::Status& s) {
      return absl::Status(s.code(), absl::StrCat(spec.name, ": ", s.message()));
    };
    std::unique_ptr<const WeightSource> opened;
    const auto file = std::find_if(spec.options.begin(), spec.options.end(),
                                   [](const KeyValue& kv) { return kv.first == "weights"; });
    if (factory->learned() && file != spec.options.end()) {
      if (open_weights == nullptr)
        return named(absl::UnimplementedError("this program cannot open weight files"));
      auto source = open_weights(std::string(file->second));
      if (!source.ok()) return named(source.status());
      opened = *std::move(source);
      weights = opened.get();
      spec.options.erase(file);
    }
    absl::StatusOr<std::unique_ptr<const Base>> made = factory->Create(spec.options, weights);
    if (!made.ok()) return named(made.status());
    return made;
  }
  absl::StatusOr<const Factory<Base>*> Find(absl::string_view name) const {
    const auto it = map_.find(std::string(name));
    if (it != map_.end()) return it->second.get();
    std::string known;
    for (const auto& [other, factory] : map_)
      absl::StrAppend(&known, known.empty() ? "" : ", ", other);
    return absl::NotFoundError(absl::StrCat("no method '", name, "'; known: ", known));
  }
  WeightOpener open_weights;  // how files named in a method's text are read; unset: not at all
  auto begin() const { return map_.begin(); }
  auto end() const { return map_.end(); }
  size_t size() const { return map_.size(); }

 private:
  std::map<std::string, std::unique_ptr<const Factory<Base>>> map_;
};

struct Registry {
  FactoryMap<Router> routers;
  FactoryMap<AttentionRouter> attention;
  FactoryMap<AgentRouter> agents;

  // How files that a method's text names (weights=FILE) are read.
  void OpenWeightsWith(const WeightOpener& open) {
    routers.open_weights = open;
    attention.open_weights = open;
    agents.open_weights = open;
  }

  template <class R>
  absl::Status Add() {
    if constexpr (AttentionRouterModel<R>) {
      return attention.Add(std::make_unique<const AttentionFactoryOf<R>>());
    } else if constexpr (AgentRouterModel<R>) {
      return agents.Add(std::make_unique<const FactoryOf<AgentRouter, AgentRouterOf, R>>());
    } else {
      static_assert(RouterModel<R>,
                    "R satisfies none of RouterModel, AttentionRouterModel and AgentRouterModel");
      return routers.Add(std::make_unique<const FactoryOf<Router, RouterOf, R>>());
    }
  }
};
SLUICE_END_NAMESPACE
#endif  // SLUICE_API_REGISTRY_H_
