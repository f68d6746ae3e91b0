// libggml-sluice.so: a ggml backend that takes attention (FLASH_ATTN_EXT) and token scores
// (LIGHTNING_INDEXER) and leaves everything else to the CPU backend. Named by GGML_BACKEND_PATH it
// is loaded by an unmodified llama.cpp; SLUICE_GGML_CONFIG names its configuration. Links nothing
// of ggml: what it needs of it is found in the process that loads it.
#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <sstream>
#include <string>

#include "ggml-backend-impl.h"
#include "ggml-backend.h"
#include "ggml-impl.h"
#include "ggml.h"
#include "sluice/plugins/ggml/host_threads.h"
#include "sluice/plugins/ggml/indexer.h"
#include "sluice/plugins/ggml/routed_attention.h"

namespace {
using sluice::DType;

std::atomic<bool> computed{false};  // a graph was computed: no longer the host's probing

struct Settings {
  sluice::ggml::Config config;
  bool usable = false;
};
const Settings& TheSettings() {
  static const Settings settings = [] {
    Settings s;
    const char* path = std::getenv("SLUICE_GGML_CONFIG");
    std::string text;
    if (path != nullptr && *path != 0) {
      std::ifstream f(path);
      if (!f) {
        std::fprintf(
            stderr,
            "sluice: SLUICE_GGML_CONFIG=%s cannot be read; attention stays with the CPU backend\n",
            path);
        return s;
      }
      std::stringstream all;
      all << f.rdbuf();
      text = all.str();
    }
    auto config = sluice::ggml::ParseConfig(text);
    if (!config.ok()) {
      std::fprintf(stderr, "sluice: %s: %s; attention stays with the CPU backend\n", path,
                   std::string(config.status().message()).c_str());
      return s;
    }
    s.config = *std::move(config);
    s.usable = true;
    return s;
  }();
  return settings;
}

// ggml's own CPU buffer type: with it no tensor is copied between the CPU backend and this one.
ggml_backend_buffer_type_t CpuBufferType() {
  using Fn = ggml_backend_buffer_type_t (*)();
  static const Fn fn =
      reinterpret_cast<Fn>(sluice::ggml::FindInProcess("ggml_backend_cpu_buffer_type"));
  return fn != nullptr ? fn() : nullptr;
}

// "cache_k_l7", wherever in the chain of views the name stands.
int LayerOf(const ggml_tensor* t) {
  for (int depth = 0; t != nullptr && depth < 8; ++depth) {
    for (const char* prefix : {"cache_k_l", "cache_v_l"}) {
      if (std::strncmp(t->name, prefix, std::strlen(prefix)) == 0)
        return std::atoi(t->name + std::strlen(prefix));
    }
    t = t->view_src != nullptr ? t->view_src : t->src[0];
  }
  return -1;
}
// Of caches with a part for each sequence, the first that a batch's keys come from.
int64_t StreamOf(const ggml_tensor* k) {
  return k->view_src != nullptr ? static_cast<int64_t>(k->view_offs / k->nb[3]) : 0;
}
float Param(const ggml_tensor* op, int i) {
  float x;
  std::memcpy(&x, reinterpret_cast<const char*>(op->op_params) + static_cast<size_t>(i) * sizeof x,
              sizeof x);
  return x;
}
// The base of the rotation that made these queries, 0 where it is not one that can be undone here:
// interleaved pairs of the whole width, unscaled, and nothing after it.
float RopeBaseOf(const ggml_tensor* q) {
  const auto only_moves = [](const ggml_tensor* t) {
    return t->op == GGML_OP_VIEW || t->op == GGML_OP_PERMUTE || t->op == GGML_OP_RESHAPE ||
           t->op == GGML_OP_CONT;
  };
  const ggml_tensor* t = q;
  while (t != nullptr && only_moves(t)) t = t->src[0];
  if (t == nullptr || t->op != GGML_OP_ROPE || t->src[2] != nullptr) return 0;
  enum : int {
    kDims = 1,
    kMode = 2,
    kBase = 5,
    kScale = 6,
    kExtrapolate = 7,
    kMagnitude = 8,
    kOffset = 15
  };
  const bool whole = t->op_params[kDims] == q->ne[0] && t->op_params[kOffset] == 0;
  const bool plain = t->op_params[kMode] == GGML_ROPE_TYPE_NORMAL && Param(t, kScale) == 1 &&
                     Param(t, kExtrapolate) == 0 && Param(t, kMagnitude) == 1;
  return whole && plain ? Param(t, kBase) : 0;
}
// Null: of no type that is read here.
std::optional<DType> TypeOf(ggml_type t) {
  switch (t) {
    case GGML_TYPE_F32:
      return DType::kF32;
    case GGML_TYPE_F16:
      return DType::kF16;
    case GGML_TYPE_BF16:
      return DType::kBF16;
    case GGML_TYPE_Q8_0:
      return DType::kQ8_0;
    case GGML_TYPE_Q4_0:
      return DType::kQ4_0;
    default:
      return std::nullopt;
  }
}
// What is stored as one: a block, or an element.
int64_t Unit(DType type) { return sluice::InBlocks(type) ? sluice::kQuantBlock : 1; }
size_t UnitBytes(DType type) { return static_cast<size_t>(sluice::DTypeBytes(type, Unit(type))); }
// Elements a stride of so many bytes passes over, 0 where it is no whole number of them.
int64_t Elements(DType type, size_t bytes) {
  const size_t units = bytes / UnitBytes(type);
  return bytes % UnitBytes(type) == 0 ? static_cast<int64_t>(units) * Unit(type) : 0;
}

int64_t Bytes(const ggml_tensor* t) {
  return sluice::DTypeBytes(*TypeOf(t->type), t->ne[0]) * t->ne[1] * t->ne[2] * t->ne[3];
}
// Keys or values that can be read as they lie: rows of whole elements or blocks.
bool Readable(const ggml_tensor* t) {
  const std::optional<DType> type = TypeOf(t->type);
  if (!type.has_value()) return false;
  return t->ne[0] % Unit(*type) == 0 && t->nb[0] == UnitBytes(*type) &&
         Elements(*type, t->nb[1]) > 0 && Elements(*type, t->nb[2]) > 0;
}
// Of a step over so many keys, for which so many bytes are read. With `-fa auto` the host probes
// with one query, and turns flash attention (and likewise the fused indexer) off when another
// device than the layer's would take it: no step is taken before anything was computed, they come
// after a prompt.
const char* WhyNotStep(int64_t keys, int64_t bytes) {
  const sluice::ggml::Config& config = TheSettings().config;
  if (!computed && config.early_steps == 0) return "a step before any prompt";
  if (!sluice::ggml::TakesStep(config, keys, bytes)) return "a step over few keys";
  return nullptr;
}
// Why an operation stays with the host; null: it is taken.
const char* WhyNot(const ggml_tensor* op) {
  const ggml_tensor *q = op->src[0], *k = op->src[1], *v = op->src[2], *mask = op->src[3],
                    *sinks = op->src[4];
  if (!TheSettings().usable) return "the configuration is wrong";
  if (q == nullptr || k == nullptr || v == nullptr) return "an operand is missing";
  if (op->type != GGML_TYPE_F32 || q->type != GGML_TYPE_F32 || q->nb[0] != sizeof(float))
    return "queries or outputs that are not rows of f32";
  if (!Readable(k) || !Readable(v)) return "keys or values of a type that is not read here";
  if (mask != nullptr && (mask->type != GGML_TYPE_F16 || mask->nb[0] != 2 || mask->ne[2] != 1))
    return "a mask that is not f16, or one a head";
  if (sinks != nullptr && sinks->type != GGML_TYPE_F32) return "sinks that are not f32";
  if (k->ne[2] != v->ne[2] || q->ne[2] % k->ne[2] != 0) return "heads that do not divide";
  if (k->ne[3] != v->ne[3] || q->ne[3] % k->ne[3] != 0) return "streams that do not divide";
  if (q->ne[1] > 1) return nullptr;
  return WhyNotStep(k->ne[1], Bytes(k) + Bytes(v));
}

// The same of LIGHTNING_INDEXER.
const char* WhyNotScores(const ggml_tensor* op) {
  const ggml_tensor *q = op->src[0], *k = op->src[1], *w = op->src[2], *mask = op->src[3];
  if (!TheSettings().usable) return "the configuration is wrong";
  if (q == nullptr || k == nullptr || w == nullptr || mask == nullptr)
    return "an operand is missing";
  const bool rows = op->type == GGML_TYPE_F32 && q->type == GGML_TYPE_F32 &&
                    w->type == GGML_TYPE_F32 && op->nb[0] == sizeof(float) &&
                    q->nb[0] == sizeof(float) && w->nb[0] == sizeof(float);
  if (!rows) return "an indexer's operands that are not rows of f32";
  if (q->nb[1] != static_cast<size_t>(q->ne[0]) * sizeof(float))
    return "an indexer's heads that lie apart";
  if (!Readable(k)) return "an indexer's keys of a type that is not read here";
  if (mask->type != GGML_TYPE_F16 || mask->nb[0] != 2)
    return "a mask that is not f16, or one a head";
  if (q->ne[2] > 1) return nullptr;
  return WhyNotStep(k->ne[2], Bytes(k) * q->ne[1]);
}

// Of all contexts of the process; kept where the configuration names a file for them.
struct Totals {
  std::mutex mutex;
  sluice::ggml::Counters layers;
  sluice::ggml::Tally declined;
  sluice::ggml::Tally parallel = {{"host's threads", 0}, {"own threads", 0}};
};
Totals& TheTotals() {
  static Totals totals;
  return totals;
}

struct Backend {
  sluice::ggml::HostThreads::Calls calls;
  sluice::ggml::HostThreads* threads = nullptr;  // of `attention`; null: the configuration's own
  std::unique_ptr<sluice::ggml::RoutedAttention> attention;
  sluice::ggml::Indexer indexer;
};

// A part of a tensor: of its last dimension, `at`.
const char* Part(const ggml_tensor* t, int64_t at) {
  return static_cast<const char*>(t->data) + static_cast<size_t>(at) * t->nb[3];
}
int64_t Floats(size_t bytes) { return static_cast<int64_t>(bytes / sizeof(float)); }

absl::Status Score(Backend& b, const ggml_tensor* op) {
  const ggml_tensor *q = op->src[0], *k = op->src[1], *w = op->src[2], *mask = op->src[3];
  const int64_t n_q = q->ne[2], heads = q->ne[1], n_kv = k->ne[2];
  const DType type = *TypeOf(k->type);
  for (int64_t s = 0; s < q->ne[3]; ++s) {
    sluice::ggml::IndexerCall c;
    c.q = {reinterpret_cast<const float*>(Part(q, s)),
           n_q,
           heads,
           q->ne[0],
           Floats(q->nb[2]),
           Floats(q->nb[1])};
    c.k = {Part(k, s), type, n_kv, 1, k->ne[0], Elements(type, k->nb[2]), 0};
    c.weights = {reinterpret_cast<const float*>(Part(w, s)), n_q, 1, heads, Floats(w->nb[1]), 0};
    c.mask = reinterpret_cast<const uint16_t*>(Part(mask, s % mask->ne[3]));
    c.mask_stride = static_cast<int64_t>(mask->nb[1] / sizeof(uint16_t));
    auto* out = reinterpret_cast<float*>(const_cast<char*>(Part(op, s)));
    c.out = {out, n_q, 1, n_kv, Floats(op->nb[1]), 0};
    SLUICE_RETURN_IF_ERROR(b.indexer.Run(c, b.attention->executor()));
  }
  return absl::OkStatus();
}

absl::Status Compute(sluice::ggml::RoutedAttention& attention, const ggml_tensor* op) {
  const ggml_tensor *q = op->src[0], *k = op->src[1], *v = op->src[2], *mask = op->src[3],
                    *sinks = op->src[4];
  sluice::ggml::FlashCall c;
  c.layer = LayerOf(k);
  if (c.layer < 0) c.layer = LayerOf(v);
  c.scale = Param(op, 0);
  c.max_bias = Param(op, 1);
  c.softcap = Param(op, 2);
  c.rope_base = RopeBaseOf(q);
  c.sinks = sinks != nullptr ? static_cast<const float*>(sinks->data) : nullptr;
  const auto view = [](const ggml_tensor* t, int64_t batch) {
    const DType type = *TypeOf(t->type);
    return sluice::KvView{
        Part(t, batch),          type, t->ne[1], t->ne[2], t->ne[0], Elements(type, t->nb[1]),
        Elements(type, t->nb[2])};
  };
  for (int64_t b = 0; b < q->ne[3]; ++b) {
    const int64_t kb = b / (q->ne[3] / k->ne[3]);
    c.stream = StreamOf(k) + kb;
    c.q = {reinterpret_cast<const float*>(Part(q, b)),
           q->ne[1],
           q->ne[2],
           q->ne[0],
           Floats(q->nb[1]),
           Floats(q->nb[2])};
    c.k = view(k, kb);
    c.v = view(v, kb);
    if (mask != nullptr) {
      c.mask = reinterpret_cast<const uint16_t*>(Part(mask, b % mask->ne[3]));
      c.mask_stride = static_cast<int64_t>(mask->nb[1] / sizeof(uint16_t));
    }
    // [dv, heads, n_q, batch]
    c.out = {
        reinterpret_cast<float*>(static_cast<char*>(op->data) + static_cast<size_t>(b) * op->nb[3]),
        q->ne[1],
        q->ne[2],
        v->ne[0],
        static_cast<int64_t>(op->nb[2] / sizeof(float)),
        static_cast<int64_t>(op->nb[1] / sizeof(float))};
    SLUICE_RETURN_IF_ERROR(attention.Run(c));
  }
  return absl::OkStatus();
}

const char* Name(ggml_backend_t) { return "Sluice"; }
void Free(ggml_backend_t backend) {
  auto* b = static_cast<Backend*>(backend->context);
  const std::string& path = b->attention->config().counters;
  if (!path.empty() && !b->attention->counters().empty()) {
    Totals& totals = TheTotals();
    const std::lock_guard<std::mutex> lock(totals.mutex);
    for (const auto& [layer, c] : b->attention->counters()) totals.layers[layer].Add(c);
    totals.parallel["host's threads"] += b->calls.host;
    totals.parallel["own threads"] += b->calls.own;
    std::ofstream f(path);
    f << sluice::ggml::CountersJson(b->attention->config(), totals.layers, totals.declined,
                                    totals.parallel);
    if (!f) std::fprintf(stderr, "sluice: counters cannot be written to %s\n", path.c_str());
  }
  delete b;
  delete backend;
}
ggml_status GraphCompute(ggml_backend_t backend, ggml_cgraph* graph) noexcept {
  auto* b = static_cast<Backend*>(backend->context);
  try {
    for (int i = 0; i < graph->n_nodes; ++i) {
      const ggml_tensor* node = graph->nodes[i];
      const bool scores = node->op == GGML_OP_LIGHTNING_INDEXER;
      if (!scores && node->op != GGML_OP_FLASH_ATTN_EXT) continue;
      if ((node->flags & GGML_TENSOR_FLAG_COMPUTE) == 0) continue;
      computed = true;
      const absl::Status s = scores ? Score(*b, node) : Compute(*b->attention, node);
      if (!s.ok()) {
        std::fprintf(stderr, "sluice: %s: %s\n", node->name, std::string(s.message()).c_str());
        return GGML_STATUS_FAILED;
      }
    }
  } catch (const std::exception& e) {
    std::fprintf(stderr, "sluice: %s\n", e.what());
    return GGML_STATUS_ALLOC_FAILED;
  }
  return GGML_STATUS_SUCCESS;
}
void SetThreads(ggml_backend_t backend, int n) {
  auto* b = static_cast<Backend*>(backend->context);
  if (b->threads != nullptr && b->threads->Told(n)) b->attention->WorkersChanged();
}

ggml_guid_t Guid() {
  static ggml_guid guid = {0x73, 0x6c, 0x75, 0x69, 0x63, 0x65, 0x2d, 0x67,
                           0x67, 0x6d, 0x6c, 0x2d, 0x30, 0x30, 0x30, 0x31};
  return &guid;
}
const char* DeviceName(ggml_backend_dev_t) { return "Sluice"; }
const char* DeviceDescription(ggml_backend_dev_t) { return "Sluice routed attention"; }
void DeviceMemory(ggml_backend_dev_t, size_t* free, size_t* total) { *free = *total = 0; }
enum ggml_backend_dev_type DeviceType(ggml_backend_dev_t) { return GGML_BACKEND_DEVICE_TYPE_ACCEL; }
void DeviceProps(ggml_backend_dev_t dev, ggml_backend_dev_props* props) {
  std::memset(props, 0, sizeof *props);
  props->name = DeviceName(dev);
  props->description = DeviceDescription(dev);
  props->type = DeviceType(dev);
}
ggml_backend_t DeviceInit(ggml_backend_dev_t dev, const char*) {
  const sluice::ggml::Config& config = TheSettings().config;
  auto b = std::make_unique<Backend>();
  std::unique_ptr<sluice::ggml::HostThreads> threads;
  if (config.threads == 0) {
    sluice::ggml::ListenToHost();
    threads = std::make_unique<sluice::ggml::HostThreads>(&b->calls);
    b->threads = threads.get();
  }
  auto attention = sluice::ggml::RoutedAttention::Create(config, std::move(threads));
  if (!attention.ok()) {
    std::fprintf(stderr, "sluice: %s\n", std::string(attention.status().message()).c_str());
    return nullptr;
  }
  b->attention = *std::move(attention);
  auto* backend = new ggml_backend();
  backend->guid = Guid();
  backend->iface.get_name = Name;
  backend->iface.free = Free;
  backend->iface.graph_compute = GraphCompute;
  backend->device = dev;
  backend->context = b.release();
  return backend;
}
ggml_backend_buffer_type_t DeviceBufferType(ggml_backend_dev_t) { return CpuBufferType(); }
bool SupportsOp(ggml_backend_dev_t, const ggml_tensor* op) {
  switch (op->op) {
    case GGML_OP_NONE:
    case GGML_OP_RESHAPE:
    case GGML_OP_VIEW:
    case GGML_OP_PERMUTE:
    case GGML_OP_TRANSPOSE:
      return true;
    case GGML_OP_FLASH_ATTN_EXT:
    case GGML_OP_LIGHTNING_INDEXER: {
      const char* why = op->op == GGML_OP_FLASH_ATTN_EXT ? WhyNot(op) : WhyNotScores(op);
      if (why != nullptr && !TheSettings().config.counters.empty()) {
        Totals& totals = TheTotals();
        const std::lock_guard<std::mutex> lock(totals.mutex);
        ++totals.declined[why];
      }
      return why == nullptr;
    }
    default:
      return false;
  }
}
bool SupportsBufferType(ggml_backend_dev_t, ggml_backend_buffer_type_t type) {
  return type->iface.is_host != nullptr && type->iface.is_host(type);
}

const char* RegName(ggml_backend_reg_t) { return "Sluice"; }
size_t DeviceCount(ggml_backend_reg_t) { return 1; }
ggml_backend_dev_t Device(ggml_backend_reg_t reg, size_t) {
  static ggml_backend_device device = [reg] {
    ggml_backend_device d{};
    d.iface.get_name = DeviceName;
    d.iface.get_description = DeviceDescription;
    d.iface.get_memory = DeviceMemory;
    d.iface.get_type = DeviceType;
    d.iface.get_props = DeviceProps;
    d.iface.init_backend = DeviceInit;
    d.iface.get_buffer_type = DeviceBufferType;
    d.iface.supports_op = SupportsOp;
    d.iface.supports_buft = SupportsBufferType;
    d.reg = reg;
    return d;
  }();
  return &device;
}
void* ProcAddress(ggml_backend_reg_t, const char* name) {
  return std::strcmp(name, "ggml_backend_set_n_threads") == 0 ? reinterpret_cast<void*>(SetThreads)
                                                              : nullptr;
}
}  // namespace

extern "C" __attribute__((visibility("default"))) ggml_backend_reg_t ggml_backend_init(void) {
  static ggml_backend_reg reg = [] {
    ggml_backend_reg r{};
    r.api_version = GGML_BACKEND_API_VERSION;
    r.iface.get_name = RegName;
    r.iface.get_device_count = DeviceCount;
    r.iface.get_device = Device;
    r.iface.get_proc_address = ProcAddress;
    return r;
  }();
  if (CpuBufferType() == nullptr) {
    std::fprintf(stderr,
                 "sluice: ggml's CPU buffer type is not to be found in this process; the plug-in "
                 "stays out\n");
    return nullptr;
  }
  return &reg;
}
extern "C" __attribute__((visibility("default"))) int ggml_backend_score(void) {
  return CpuBufferType() != nullptr ? 1 : 0;
}
