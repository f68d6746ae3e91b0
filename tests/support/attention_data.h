#ifndef SLUICE_TESTS_SUPPORT_ATTENTION_DATA_H_
#define SLUICE_TESTS_SUPPORT_ATTENTION_DATA_H_
// Synthetic queries, keys and values for tests and benchmarks.
#include <cmath>
#include <cstring>
#include <memory>
#include <vector>

#include "sluice/api/attention_router.h"
#include "sluice/runtime/base/counter_rng.h"

SLUICE_BEGIN_NAMESPACE
enum class DataKind {
  kGaussian,    // no structure: the worst case
  kNeedles,     // a few keys that late queries look for
  kSinkRecent,  // logit bias on the first keys and a decay with distance
  kClustered,   // drifting topics: neighbouring keys are alike and queries follow their topic
};

struct AttentionData {
  int64_t kv_len = 0, q_count = 0, heads = 0, kv_heads = 0, d = 0, dv = 0;
  std::vector<float> q, k, v;
  std::vector<uint32_t> kraw, vraw;  // other element types
  DType dtype = DType::kF32;
  int64_t width = 0;          // of hidden states
  std::vector<float> hidden;  // [q_count, width]

  HeadsView<const float> Q() const { return {q.data(), q_count, heads, d, heads * d, d}; }
  KvView K() const {
    return {dtype == DType::kF32 ? static_cast<const void*>(k.data()) : kraw.data(),
            dtype,
            kv_len,
            kv_heads,
            d,
            kv_heads * d,
            d};
  }
  KvView V() const {
    return {dtype == DType::kF32 ? static_cast<const void*>(v.data()) : vraw.data(),
            dtype,
            kv_len,
            kv_heads,
            dv,
            kv_heads * dv,
            dv};
  }
  int64_t q_begin() const { return kv_len - q_count; }
  // Of a model of four layers that takes this in one call.
  AttentionShape Shape() const {
    return {.max_queries = q_count,
            .max_kv = kv_len,
            .heads = static_cast<int>(heads),
            .kv_heads = static_cast<int>(kv_heads),
            .head_dim = static_cast<int>(d),
            .value_dim = static_cast<int>(dv),
            .layers = 4,
            .width = width};
  }
  float scale() const { return 1.0f / std::sqrt(static_cast<float>(d)); }
  AttentionInputs Inputs() const {
    AttentionInputs in;
    in.q = Q();
    in.k = K();
    in.v = V();
    in.q_begin = q_begin();
    in.scale = scale();
    in.q_pre = Q();
    in.k_pre = K();
    in.prompt_end = kv_len;
    in.rope_base = 10000;
    if (width > 0) in.hidden = {hidden.data(), q_count, width, width};
    return in;
  }
  // Rounds k and v to another element type (and keeps the rounded floats).
  void Convert(DType to) {
    dtype = to;
    for (auto [x, raw] : {std::pair(&k, &kraw), std::pair(&v, &vraw)}) {
      raw->assign(x->size() / 2 + 1, 0);
      if (InBlocks(to)) {
        QuantiseBlocks(to, *x, reinterpret_cast<uint8_t*>(raw->data()));
        continue;
      }
      uint16_t* out = reinterpret_cast<uint16_t*>(raw->data());
      for (size_t i = 0; i < x->size(); ++i) {
        out[i] = to == DType::kBF16 ? F32ToBF16((*x)[i]) : F32ToF16((*x)[i]);
        (*x)[i] = to == DType::kBF16 ? BF16ToF32(out[i]) : F16ToF32(out[i]);
      }
    }
  }
  // The largest of 32 numbers takes the largest step.
  static void QuantiseBlocks(DType to, std::vector<float>& x, uint8_t* out) {
    const int most = to == DType::kQ8_0 ? 127 : 7;
    for (size_t b = 0; b < x.size(); b += kQuantBlock, out += DTypeBytes(to, kQuantBlock)) {
      float top = 0;
      for (int64_t i = 0; i < kQuantBlock; ++i) top = std::max(top, std::fabs(x[b + i]));
      const uint16_t scale = F32ToF16(top / static_cast<float>(most));
      std::memcpy(out, &scale, sizeof scale);
      for (int64_t i = 0; i < kQuantBlock; ++i) {
        const float step = F16ToF32(scale);
        const int q = step == 0 ? 0 : static_cast<int>(std::lround(x[b + i] / step));
        x[b + i] = step * static_cast<float>(q);
        if (to == DType::kQ8_0) {
          out[2 + i] = static_cast<uint8_t>(static_cast<int8_t>(q));
        } else if (i < 16) {
          out[2 + i] = static_cast<uint8_t>(q + 8);
        } else {
          out[2 + i - 16] = static_cast<uint8_t>(out[2 + i - 16] | (q + 8) << 4);
        }
      }
    }
  }
};

inline AttentionData MakeAttentionData(DataKind kind, int64_t kv_len, int64_t q_count,
                                       int64_t heads, int64_t kv_heads, int64_t d, int64_t dv,
                                       uint64_t seed) {
  AttentionData a;
  a.kv_len = kv_len;
  a.q_count = q_count;
  a.heads = heads;
  a.kv_heads = kv_heads;
  a.d = d;
  a.dv = dv;
  const auto normal = [&](uint64_t unit, int64_t item) {
    return static_cast<float>(RandomNormal({seed, 0, 0, unit, static_cast<uint64_t>(item)}));
  };
  a.q.resize(q_count * heads * d);
  a.k.resize(kv_len * kv_heads * d);
  a.v.resize(kv_len * kv_heads * dv);
  for (size_t i = 0; i < a.q.size(); ++i) a.q[i] = normal(1, static_cast<int64_t>(i));
  for (size_t i = 0; i < a.k.size(); ++i) a.k[i] = normal(2, static_cast<int64_t>(i));
  for (size_t i = 0; i < a.v.size(); ++i) a.v[i] = normal(3, static_cast<int64_t>(i));
  a.width = 24;
  a.hidden.resize(q_count * a.width);
  for (int64_t i = 0; i < std::ssize(a.hidden); ++i) a.hidden[i] = normal(5, i);
  const int64_t g = heads / kv_heads;
  const auto key = [&](int64_t s, int64_t kv) { return &a.k[(s * kv_heads + kv) * d]; };
  const auto query = [&](int64_t i, int64_t h) { return &a.q[(i * heads + h) * d]; };
  if (kind == DataKind::kNeedles && kv_len > 8) {
    for (int64_t i = 0; i < q_count; ++i) {
      for (int64_t kv = 0; kv < kv_heads; ++kv) {
        const int64_t reach = a.q_begin() + i / 16 * 16 + 1;
        const int64_t s = static_cast<int64_t>(
            RandomBits({seed, 1, 0, static_cast<uint64_t>(kv), static_cast<uint64_t>(i / 16)}) %
            static_cast<uint64_t>(reach));
        for (int64_t h = kv * g; h < (kv + 1) * g; ++h) {
          for (int64_t x = 0; x < d; ++x) query(i, h)[x] += 1.5f * key(s, kv)[x];
        }
      }
    }
  } else if (kind == DataKind::kSinkRecent) {
    for (int64_t s = 0; s < kv_len; ++s) {
      for (int64_t kv = 0; kv < kv_heads; ++kv)
        key(s, kv)[0] = s < 4 ? 8.0f : 6.0f * std::exp(-static_cast<float>(kv_len - s) / 64.0f);
    }
    for (int64_t i = 0; i < q_count; ++i) {
      for (int64_t h = 0; h < heads; ++h) query(i, h)[0] = 6.0f;
    }
  } else if (kind == DataKind::kClustered) {
    const int64_t length = 128;
    const auto centre = [&](int64_t topic, int64_t kv, int64_t x) {
      return 1.5f * normal(4, (topic * kv_heads + kv) * d + x);
    };
    for (int64_t s = 0; s < kv_len; ++s) {
      for (int64_t kv = 0; kv < kv_heads; ++kv) {
        for (int64_t x = 0; x < d; ++x)
          key(s, kv)[x] = 0.5f * key(s, kv)[x] + centre(s / length, kv, x);
      }
    }
    for (int64_t i = 0; i < q_count; ++i) {
      const int64_t topics = (a.q_begin() + i) / length + 1;
      for (int64_t h = 0; h < heads; ++h) {
        const int64_t topic = static_cast<int64_t>(
            RandomBits({seed, 2, 0, static_cast<uint64_t>(h / g), static_cast<uint64_t>(i / 64)}) %
            static_cast<uint64_t>(topics));
        for (int64_t x = 0; x < d; ++x)
          query(i, h)[x] = 0.7f * query(i, h)[x] + centre(topic, h / g, x);
      }
    }
  }
  return a;
}
SLUICE_END_NAMESPACE
#endif  // SLUICE_TESTS_SUPPORT_ATTENTION_DATA_H_
