#ifndef SLUICE_TESTS_SUPPORT_HOST_FIXTURE_H_
#define SLUICE_TESTS_SUPPORT_HOST_FIXTURE_H_
// The bundled model and the engine over it, as its tests need them.
#include <gtest/gtest.h>

#include <cstring>
#include <memory>
#include <string>
#include <vector>

#include "sluice/runtime/base/counter_rng.h"
#include "sluice/runtime/host/engine.h"

SLUICE_BEGIN_NAMESPACE
namespace host {
inline const Model& Mini() {
  static const Model* m = new Model(
      *LoadModel(std::string(SLUICE_SOURCE_DIR) + "/examples/models/sluice-mini-q8_0.gguf"));
  return *m;
}
inline std::unique_ptr<Engine> Make(const EngineOptions& o) {
  auto e = Engine::Create(Mini(), o);
  EXPECT_TRUE(e.ok()) << e.status();
  return std::move(*e);
}
inline std::vector<int32_t> Tokens(int64_t n) {
  std::vector<int32_t> t(n);
  for (size_t i = 0; i < t.size(); ++i)
    t[i] = static_cast<int32_t>(RandomBits({3, 0, 0, 0, i}) % 8000 + 1);
  return t;
}
// Logits that follow every token at or after `from`.
inline std::vector<float> Logits(Engine& e, const std::vector<int32_t>& tokens, int64_t from) {
  std::vector<float> out;
  const int64_t vocab = e.model().shape.vocab;
  EXPECT_TRUE(e.Feed(tokens, from, [&](int64_t, const float* x) {
                 out.insert(out.end(), x, x + vocab);
               }).ok());
  return out;
}
// Keys and values of both hold the same bits in every layer.
inline void ExpectSameCaches(const Engine& a, const Engine& b) {
  for (int64_t layer = 0; layer < a.model().shape.layers; ++layer) {
    const auto same = [&](const KvView& x, const KvView& y) {
      ASSERT_EQ(x.rows, y.rows) << layer;
      ASSERT_EQ(x.dtype, y.dtype) << layer;
      const auto bytes = static_cast<size_t>(DTypeBytes(x.dtype, x.rows * x.row_stride));
      EXPECT_EQ(std::memcmp(x.data, y.data, bytes), 0) << layer;
    };
    same(a.keys(layer), b.keys(layer));
    same(a.values(layer), b.values(layer));
  }
}
inline void ExpectNear(const std::vector<float>& a, const std::vector<float>& b, float tolerance) {
  ASSERT_EQ(a.size(), b.size());
  for (size_t i = 0; i < a.size(); ++i) ASSERT_NEAR(a[i], b[i], tolerance) << i;
}
}  // namespace host
SLUICE_END_NAMESPACE
#endif  // SLUICE_TESTS_SUPPORT_HOST_FIXTURE_H_
