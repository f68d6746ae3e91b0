// Any bytes: the reader must return a file or an error, and a file's tensors must be readable.
#include "sluice/runtime/weights/gguf.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const auto file = sluice::Gguf::Parse({reinterpret_cast<const std::byte*>(data), size});
  if (!file.ok()) return 0;
  for (const auto& [name, t] : file->tensors()) (void)file->ReadF32(name, t.shape);
  for (const auto& [key, value] : file->values()) {
    (void)file->Int(key);
    (void)file->Real(key);
    (void)file->Texts(key);
  }
  return 0;
}
