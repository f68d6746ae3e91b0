// sluice::attend and sluice::route for PyTorch: routed attention and routing on CPU tensors, from
// C++ and from Python. Tensors are read where they lie; only their innermost dimension must be
// contiguous.
#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <torch/library.h>

#include <list>
#include <mutex>

#include "sluice/api/registry.h"
#include "sluice/runtime/base/tbb_executor.h"
#include "sluice/runtime/dynload/installed.h"
#include "sluice/runtime/session/attention_session.h"
#include "sluice/runtime/weights/gguf.h"

namespace {
using sluice::DType;

template <class T>
T Take(absl::StatusOr<T> made) {
  TORCH_CHECK_VALUE(made.ok(), std::string(sluice::WithRefused(made.status()).message()));
  return *std::move(made);
}
void Check(const absl::Status& s) { TORCH_CHECK(s.ok(), std::string(s.message())); }

// What a call needs besides its tensors. Kept between calls, each in use by one of them at a time.
struct Prepared {
  std::string key;
  std::unique_ptr<sluice::AttentionSession> session;
};
class Pool {
 public:
  std::unique_ptr<Prepared> Take(const std::string& key) {
    const std::lock_guard<std::mutex> lock(mutex_);
    for (auto it = idle_.begin(); it != idle_.end(); ++it) {
      if ((*it)->key != key) continue;
      std::unique_ptr<Prepared> p = std::move(*it);
      idle_.erase(it);
      return p;
    }
    return nullptr;
  }
  void Give(std::unique_ptr<Prepared> p) {
    const std::lock_guard<std::mutex> lock(mutex_);
    idle_.push_front(std::move(p));
    if (idle_.size() > kIdle) idle_.pop_back();
  }

 private:
  static constexpr size_t kIdle = 16;
  std::mutex mutex_;
  std::list<std::unique_ptr<Prepared>> idle_;  // used last first
};
Pool& Idle() {
  static auto* pool = new Pool;  // outlives whoever calls at exit
  return *pool;
}

int64_t AtLeast(int64_t n) {  // sequences grow by single tokens: sizes are rounded so that what was
                              // prepared fits again
  int64_t size = 1;
  while (size < n) size *= 2;
  return size;
}
constexpr int kMostLayers = 4096;

std::unique_ptr<Prepared> Prepare(const std::string& policy, const sluice::SessionOptions& shape) {
  const std::string key =
      absl::StrCat(policy, " ", shape.max_queries, " ", shape.max_kv, " ", shape.heads, " ",
                   shape.kv_heads, " ", shape.head_dim, " ", shape.value_dim, " ", shape.threads);
  if (std::unique_ptr<Prepared> p = Idle().Take(key)) return p;
  auto p = std::make_unique<Prepared>();
  p->key = key;
  sluice::SessionOptions o = shape;
  o.layers = kMostLayers;
  o.policy = policy;
  o.methods = &sluice::InstalledMethods().registry;
  p->session = Take(sluice::AttentionSession::Create(o));
  return p;
}

DType TypeOf(const at::Tensor& t, const char* name) {
  switch (t.scalar_type()) {
    case at::kFloat:
      return DType::kF32;
    case at::kBFloat16:
      return DType::kBF16;
    case at::kHalf:
      return DType::kF16;
    default:
      TORCH_CHECK_VALUE(false, "sluice::attend: ", name, " is ", t.scalar_type(),
                        "; allowed: float32, bfloat16, float16");
  }
}
void CheckTensor(const at::Tensor& t, const char* op, const char* name, int64_t dims) {
  TORCH_CHECK_VALUE(t.device().is_cpu(), op, ": ", name, " is on ", t.device(), ", wanted the CPU");
  TORCH_CHECK_VALUE(t.dim() == dims, op, ": ", name, " has shape ", t.sizes(), ", wanted ", dims,
                    " dimensions");
  TORCH_CHECK_VALUE(t.numel() > 0, op, ": ", name, " is empty: shape ", t.sizes());
  TORCH_CHECK_VALUE(t.size(-1) == 1 || t.stride(-1) == 1, op, ": the last dimension of ", name,
                    " has stride ", t.stride(-1), ", wanted 1: call contiguous() first");
  TORCH_CHECK(!(at::GradMode::is_enabled() && t.requires_grad()), op, ": ", name,
              " requires a gradient and this has none: call it under torch.no_grad()");
}
template <class T>
T* At(const at::Tensor& t, int64_t batch) {
  return reinterpret_cast<T*>(static_cast<std::byte*>(t.data_ptr()) +
                              batch * t.stride(0) * static_cast<int64_t>(t.element_size()));
}
sluice::KvView Cache(const at::Tensor& t, int64_t batch, DType type) {
  return {
      At<const void>(t, batch), type, t.size(2), t.size(1), t.size(3), t.stride(2), t.stride(1)};
}

// Attention of the last T of S tokens: causal, unless the router is for encoders. q [B, H, T, D]
// float32; k [B, KV, S, D] and v [B, KV, S, DV], float32, bfloat16 or float16, H a multiple of KV.
// `router` is a router or a composition, as everywhere in Sluice. Returns o [B, H, T, DV] and the
// density: evaluated pairs over causal pairs. What routers know of the keys is found again in every
// call. O(listed pairs * (D + DV)) and the router's own.
std::tuple<at::Tensor, double> AttendOp(const at::Tensor& q, const at::Tensor& k,
                                        const at::Tensor& v, c10::string_view router,
                                        c10::optional<double> scale, int64_t layer) {
  CheckTensor(q, "sluice::attend", "q", 4);
  CheckTensor(k, "sluice::attend", "k", 4);
  CheckTensor(v, "sluice::attend", "v", 4);
  TORCH_CHECK_VALUE(q.scalar_type() == at::kFloat, "sluice::attend: q is ", q.scalar_type(),
                    ", wanted float32");
  const DType k_type = TypeOf(k, "k"), v_type = TypeOf(v, "v");
  TORCH_CHECK_VALUE(k_type == v_type, "sluice::attend: k is ", k.scalar_type(), " and v is ",
                    v.scalar_type(), ", wanted the same");
  TORCH_CHECK_VALUE(k.size(0) == q.size(0) && v.size(0) == q.size(0) && k.size(3) == q.size(3) &&
                        v.size(1) == k.size(1) && v.size(2) == k.size(2) &&
                        q.size(1) % k.size(1) == 0 && q.size(2) <= k.size(2),
                    "sluice::attend: q ", q.sizes(), ", k ", k.sizes(), " and v ", v.sizes(),
                    " do not fit; wanted [B, H, T, D], [B, KV, S, D] and [B, KV, S, DV] with H a "
                    "multiple of KV and "
                    "T <= S");
  TORCH_CHECK_VALUE(layer >= -1 && layer < kMostLayers, "sluice::attend: layer is ", layer,
                    ", allowed 0 to ", kMostLayers - 1, ", or -1 for unknown");
  sluice::SessionOptions shape;
  shape.max_queries = AtLeast(q.size(2));
  shape.max_kv = AtLeast(k.size(2));
  shape.heads = static_cast<int>(q.size(1));
  shape.kv_heads = static_cast<int>(k.size(1));
  shape.head_dim = static_cast<int>(q.size(3));
  shape.value_dim = static_cast<int>(v.size(3));
  shape.bidirectional = true;
  shape.threads = at::get_num_threads();
  std::unique_ptr<Prepared> p = Prepare(std::string(router), shape);

  at::Tensor o = at::empty({q.size(0), q.size(1), q.size(2), v.size(3)}, q.options());
  sluice::AttentionCounters counters;
  for (int64_t b = 0; b < q.size(0); ++b) {
    sluice::AttentionInputs in;
    in.q = {At<const float>(q, b), q.size(2), q.size(1), q.size(3), q.stride(2), q.stride(1)};
    in.k = Cache(k, b, k_type);
    in.v = Cache(v, b, v_type);
    in.q_begin = k.size(2) - q.size(2);
    in.scale = static_cast<float>(scale.value_or(1 / std::sqrt(static_cast<double>(q.size(3)))));
    sluice::SessionOutputs out;
    out.o = {At<float>(o, b), o.size(2), o.size(1), o.size(3), o.stride(2), o.stride(1)};
    p->session->Clear();
    p->session->ResetCounters();
    Check(p->session->Run(static_cast<int>(layer), in, out));
    counters.Add(p->session->counters(static_cast<int>(layer)));
  }
  Idle().Give(std::move(p));
  return {o, counters.density()};
}

// Items to units by an assignment router or a pruner. x [items, width] float32 is what the router
// reads: hidden states or features, its attention feedback where width is 1, or with `scores` the
// scores [items, units]. `weights`: a GGUF file, for learned routers. Returns CSR: row_ptr
// [items + 1] int64, unit [entries] int32 and weight [entries], and the pairs [dropped, 2] (item,
// unit) that found their unit full.
std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor> RouteOp(const at::Tensor& x,
                                                                   c10::string_view router,
                                                                   int64_t units, bool scores,
                                                                   c10::string_view weights) {
  CheckTensor(x, "sluice::route", "x", 2);
  TORCH_CHECK_VALUE(x.scalar_type() == at::kFloat, "sluice::route: x is ", x.scalar_type(),
                    ", wanted float32");
  TORCH_CHECK_VALUE(units > 0 && units <= (1 << 20), "sluice::route: ", units,
                    " units, allowed 1 to 2^20");
  std::unique_ptr<sluice::Gguf> file;
  if (!weights.empty())
    file = std::make_unique<sluice::Gguf>(Take(sluice::Gguf::Open(std::string(weights))));
  const auto made = Take(sluice::InstalledMethods().registry.routers.Create(
      absl::string_view(router.data(), router.size()), file.get()));
  const int64_t items = x.size(0);
  const uint32_t reads = made->traits().reads;
  TORCH_CHECK_VALUE(scores || (reads & sluice::kReadsScores) == 0,
                    "sluice::route: ", std::string(made->name()),
                    " reads scores: give them as x [items, units] with scores=True");
  sluice::RouteShape shape;
  shape.items = items;
  shape.units = units;
  shape.width = (reads & sluice::kReadsFeatures) != 0 ? x.size(1) : 0;
  shape.hidden = (reads & sluice::kReadsHidden) != 0 ? x.size(1) : 0;
  shape.workers = at::get_num_threads();
  const auto plan = Take(made->MakePlan(shape));

  const at::Tensor packed = x.contiguous();
  sluice::RouteInputs in;
  in.items = items;
  const sluice::MatrixView<const float> view = {packed.data_ptr<float>(), items, x.size(1),
                                                x.size(1)};
  if (scores) in.scores = view;
  if (shape.width > 0) in.features = view;
  if (shape.hidden > 0) in.hidden = view;
  if ((reads & sluice::kReadsFeedback) != 0) {
    TORCH_CHECK_VALUE(x.size(1) == 1, "sluice::route: x has shape ", x.sizes(), ", and ",
                      std::string(made->name()), " reads attention feedback: wanted [items, 1]");
    in.feedback = {packed.data_ptr<float>(), static_cast<size_t>(items)};
  }

  const auto ints = x.options().dtype(at::kInt);
  at::Tensor row_ptr = at::zeros({items + 1}, x.options().dtype(at::kLong));
  at::Tensor unit = at::empty({plan->info().max_entries}, ints);
  at::Tensor weight = at::empty({plan->info().max_entries}, x.options());
  at::Tensor dropped = at::empty({plan->info().max_dropped, 2}, ints);
  sluice::Assignment a;
  a.row_ptr = {row_ptr.data_ptr<int64_t>(), static_cast<size_t>(items) + 1};
  a.unit = {unit.data_ptr<int32_t>(), static_cast<size_t>(unit.numel())};
  a.weight = {weight.data_ptr<float>(), static_cast<size_t>(weight.numel())};
  a.dropped = {reinterpret_cast<sluice::DroppedPair*>(dropped.data_ptr<int32_t>()),
               static_cast<size_t>(plan->info().max_dropped)};
  const sluice::OwnedWorkspace workspace(plan->info().workspace_bytes);
  const auto executor = sluice::MakeTbbExecutor(at::get_num_threads());
  Check(made->Run(*plan, in, {workspace.workspace(), executor.get()}, a));
  const int64_t entries = a.entries();
  return {row_ptr.slice(0, 0, a.items + 1), unit.slice(0, 0, entries), weight.slice(0, 0, entries),
          dropped.slice(0, 0, a.num_dropped)};
}
}  // namespace

TORCH_LIBRARY(sluice, m) {
  m.def(
      "attend(Tensor q, Tensor k, Tensor v, str router=\"dense\", float? scale=None, int layer=-1) "
      "-> (Tensor, float)");
  m.def(
      "route(Tensor x, str router, int units=2, bool scores=False, str weights=\"\") -> (Tensor, "
      "Tensor, Tensor, "
      "Tensor)");
}
TORCH_LIBRARY_IMPL(sluice, CPU, m) {
  m.impl("attend", AttendOp);
  m.impl("route", RouteOp);
}
