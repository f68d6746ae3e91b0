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
#include "sluice/api/weight_pruner.h"
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
  virtual absl::StatusOr<WeightKeys> Weights(absl::Span<const KeyValue>,
                                             const AttentionShape&) const = 0;
  virtual absl::StatusOr<std::unique_ptr<const AttentionRouter>> Create(
      absl::Span<const KeyValue>, const WeightSource* weights) const = 0;
};

// Routers of items say what they are before they are made.
class RouterFactory : public Factory<Router> {
 public:
  virtual const RouteTraits& traits() const = 0;
  // What Create would read of a file made for this shape; empty for methods that are not learned.
  virtual absl::StatusOr<WeightKeys> Weights(absl::Span<const KeyValue>,
                                             const RouteShape&) const = 0;
  absl::string_view name() const final { return traits().name; }
  bool learned() const final { return traits().learned; }
  std::string FullBudget() const final { return std::string(traits().full_budget); }
};

// Pruners of weights too.
class WeightPrunerFactory : public Factory<WeightPruner> {
 public:
  virtual const PrunerTraits& traits() const = 0;
  absl::string_view name() const final { return traits().name; }
  bool learned() const final { return false; }
  std::string FullBudget() const final { return ""; }  // the target is the budget
};

template <class Base>
struct FactoryType {
  using type = Factory<Base>;
};
template <>
struct FactoryType<Router> {
  using type = RouterFactory;
};

template <>
struct FactoryType<WeightPruner> {
  using type = WeightPrunerFactory;
};

namespace registry_internal {
// A method made from its config and, where it is learned, its weights.
template <class R>
absl::StatusOr<R> Make(absl::Span<const KeyValue> kvs, const WeightSource* weights) {
  typename R::Config config;
  SLUICE_RETURN_IF_ERROR(ReadConfig(kvs, config));
  return MakeMethod<R>(config, weights);
}
}  // namespace registry_internal

template <AttentionRouterModel R>
class AttentionFactoryOf final : public Factory<AttentionRouter> {
 public:
  const AttentionTraits& traits() const override {
    static constexpr AttentionTraits kTraits = R::kTraits;
    return kTraits;
  }
  bool learned() const override { return LearnedModel<R>; }
  std::string Describe() const override { return DescribeConfig<typename R::Config>(); }
  absl::StatusOr<WeightKeys> Weights(absl::Span<const KeyValue> kvs,
                                     const AttentionShape& shape) const override {
    typename R::Config config;
    SLUICE_RETURN_IF_ERROR(ReadConfig(kvs, config));
    if constexpr (LearnedModel<R>) return R::Weights(config, shape);
    return WeightKeys();
  }
  absl::StatusOr<std::unique_ptr<const AttentionRouter>> Create(
      absl::Span<const KeyValue> kvs, const WeightSource* weights) const override {
    SLUICE_ASSIGN_OR_RETURN(R r, registry_internal::Make<R>(kvs, weights));
    return std::make_unique<const AttentionRouterOf<R>>(std::move(r));
  }
};

template <class R>
class RouterFactoryOf final : public RouterFactory {
 public:
  const RouteTraits& traits() const override { return R::kTraits; }
  std::string Describe() const override { return DescribeConfig<typename R::Config>(); }
  absl::StatusOr<WeightKeys> Weights(absl::Span<const KeyValue> kvs,
                                     const RouteShape& s) const override {
    typename R::Config config;
    SLUICE_RETURN_IF_ERROR(ReadConfig(kvs, config));
    return router_internal::Weights<R>(config, s);
  }
  absl::StatusOr<std::unique_ptr<const Router>> Create(absl::Span<const KeyValue> kvs,
                                                       const WeightSource* weights) const override {
    SLUICE_ASSIGN_OR_RETURN(R r, registry_internal::Make<R>(kvs, weights));
    return std::make_unique<const RouterOf<R>>(std::move(r));
  }
};

template <class P>
class WeightPrunerFactoryOf final : public WeightPrunerFactory {
 public:
  const PrunerTraits& traits() const override { return P::kTraits; }
  std::string Describe() const override { return DescribeConfig<typename P::Config>(); }
  absl::StatusOr<std::unique_ptr<const WeightPruner>> Create(absl::Span<const KeyValue> kvs,
                                                             const WeightSource*) const override {
    SLUICE_ASSIGN_OR_RETURN(P p, registry_internal::Make<P>(kvs, nullptr));
    return std::make_unique<const WeightPrunerOf<P>>(std::move(p));
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
    SLUICE_ASSIGN_OR_RETURN(R r, registry_internal::Make<R>(kvs, weights));
    return std::make_unique<const Bridge<R>>(std::move(r));
  }
};

// Methods by name. A name that is "domain/method" may be given without its domain where only one
// domain has that method.
template <class Base>
class FactoryMap {
 public:
  using FactoryT = typename FactoryType<Base>::type;

  absl::Status Add(std::unique_ptr<const FactoryT> f) {
    std::string key(f->name());
    if (!map_.emplace(key, std::move(f)).second)
      return absl::AlreadyExistsError(absl::StrCat("'", key, "' is registered twice"));
    return absl::OkStatus();
  }

  absl::StatusOr<const FactoryT*> Find(absl::string_view name) const {
    if (auto it = map_.find(std::string(name)); it != map_.end()) return it->second.get();
    std::string known;
    std::string meant;
    const FactoryT* found = nullptr;
    for (const auto& [key, factory] : map_) {
      absl::StrAppend(&known, known.empty() ? "" : ", ", key);
      const size_t slash = key.find('/');
      if (slash == std::string::npos || key.substr(slash + 1) != name) continue;
      absl::StrAppend(&meant, meant.empty() ? "" : ", ", key);
      if (found != nullptr)
        return absl::InvalidArgumentError(absl::StrCat("'", name, "' may be any of ", meant));
      found = factory.get();
    }
    if (found == nullptr)
      return absl::NotFoundError(absl::StrCat("no method '", name, "'; known: ", known));
    return found;
  }

  // From "name:key=value,...". Learned methods read `weights` during the call, or the file that
  // their text names (weights=FILE).
  absl::StatusOr<std::unique_ptr<const Base>> Create(absl::string_view spec_text,
                                                     const WeightSource* weights = nullptr) const {
    SLUICE_ASSIGN_OR_RETURN(Spec spec, ParseSpec(spec_text));
    SLUICE_ASSIGN_OR_RETURN(const FactoryT* factory, Find(spec.name));
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
  WeightOpener open_weights;  // how files named in a method's text are read; unset: not at all
  auto begin() const { return map_.begin(); }
  auto end() const { return map_.end(); }
  size_t size() const { return map_.size(); }

 private:
  std::map<std::string, std::unique_ptr<const FactoryT>> map_;
};

struct Registry {
  FactoryMap<Router> routers;
  FactoryMap<AttentionRouter> attention;
  FactoryMap<AgentRouter> agents;
  FactoryMap<WeightPruner> pruners;  // of weights

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
    } else if constexpr (WeightPrunerModel<R>) {
      return pruners.Add(std::make_unique<const WeightPrunerFactoryOf<R>>());
    } else {
      static_assert(RouterModel<R>,
                    "R satisfies none of RouterModel, AttentionRouterModel, AgentRouterModel and "
                    "WeightPrunerModel");
      return routers.Add(std::make_unique<const RouterFactoryOf<R>>());
    }
  }
};
SLUICE_END_NAMESPACE
#endif  // SLUICE_API_REGISTRY_H_
