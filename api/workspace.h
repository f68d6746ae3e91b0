#ifndef SLUICE_API_WORKSPACE_H_
#define SLUICE_API_WORKSPACE_H_
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <memory>

#include "sluice/api/version.h"

SLUICE_BEGIN_NAMESPACE
inline constexpr size_t kWorkspaceAlign = 64;

// Layout of a scratch block. MakePlan calls Add() to size it and keeps the offsets; Run calls
// Workspace::At() on the same offsets, so "how much" and "where" cannot disagree.
class WorkspaceLayout {
 public:
  template <class T>
  size_t Add(int64_t count) {
    const size_t at = bytes_;
    bytes_ += (static_cast<size_t>(count) * sizeof(T) + kWorkspaceAlign - 1) / kWorkspaceAlign *
              kWorkspaceAlign;
    return at;
  }
  size_t bytes() const { return bytes_; }

 private:
  size_t bytes_ = 0;
};

// A borrowed block of at least PlanInfo::workspace_bytes, aligned to kWorkspaceAlign.
struct Workspace {
  std::byte* data = nullptr;
  size_t bytes = 0;
  template <class T>
  T* At(size_t offset) const {
    return reinterpret_cast<T*>(data + offset);
  }
};

// A host's block for a workspace or a router's state: aligned, zero when made.
class OwnedWorkspace {
 public:
  explicit OwnedWorkspace(size_t bytes = 0) { Resize(bytes); }
  // What was in it is gone.
  void Resize(size_t bytes) {
    bytes_ = bytes;
    data_.reset(new std::byte[bytes + kWorkspaceAlign]());
  }
  std::byte* data() const {
    return reinterpret_cast<std::byte*>(
        (reinterpret_cast<uintptr_t>(data_.get()) + kWorkspaceAlign - 1) / kWorkspaceAlign *
        kWorkspaceAlign);
  }
  size_t bytes() const { return bytes_; }
  void Clear() { std::memset(data(), 0, bytes_); }
  Workspace workspace() const { return {data(), bytes_}; }

 private:
  std::unique_ptr<std::byte[]> data_;
  size_t bytes_ = 0;
};
SLUICE_END_NAMESPACE
#endif  // SLUICE_API_WORKSPACE_H_
