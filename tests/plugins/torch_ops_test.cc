// The PyTorch ops from C++: found by name, called with tensors.
#include <ATen/ATen.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <dlfcn.h>
#include <gtest/gtest.h>

namespace {
TEST(TorchOps, AreCalledFromCpp) {
  ASSERT_NE(dlopen(SLUICE_TORCH_OPS, RTLD_NOW), nullptr) << dlerror();
  const auto attend = c10::Dispatcher::singleton()
                          .findSchemaOrThrow("sluice::attend", "")
                          .typed<std::tuple<at::Tensor, double>(
                              const at::Tensor&, const at::Tensor&, const at::Tensor&,
                              c10::string_view, c10::optional<double>, int64_t)>();
  const at::Tensor q = at::ones({1, 2, 5, 8}), k = at::ones({1, 1, 5, 8});
  const at::Tensor v =
      at::arange(5).to(at::kFloat).reshape({1, 1, 5, 1}).expand({1, 1, 5, 3}).contiguous();
  const auto [o, density] = attend.call(q, k, v, "dense", c10::nullopt, -1);
  EXPECT_EQ(density, 1);
  // Equal logits: query i averages the values 0..i.
  for (int64_t i = 0; i < 5; ++i)
    EXPECT_NEAR(o.index({0, 1, i, 2}).item<float>(), static_cast<float>(i) / 2, 1e-6f);
  EXPECT_THROW(attend.call(q, k, v, "nobody", c10::nullopt, -1), c10::ValueError);
}
}  // namespace
