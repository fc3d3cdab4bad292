#include "bindings/dlpack.h"

#include <memory>
#include <utility>

#include "cpu/block_pool.h"

namespace ruprompt {
namespace {

// The stable binary interface of DLPack: https://dmlc.github.io/dlpack/latest/c_api.html
struct DLDevice {
  int32_t type;
  int32_t id;
};

struct DLDataType {
  uint8_t code;
  uint8_t bits;
  uint16_t lanes;
};

struct DLTensor {
  void* data;
  DLDevice device;
  int32_t ndim;
  DLDataType dtype;
  int64_t* shape;
  int64_t* strides;
  uint64_t byte_offset;
};

struct DLManagedTensor {
  DLTensor tensor;
  void* manager;
  void (*deleter)(DLManagedTensor*);
};

constexpr int32_t kCpu = 1;
constexpr uint8_t kFloat = 2;
constexpr uint8_t kBrainFloat = 4;

// Owns a block of the pool for as long as any tensor uses it.
struct PooledTensor {
  PooledTensor(std::vector<int64_t> sizes, Dtype dtype) : shape(std::move(sizes)), strides(shape.size()) {
    int64_t elements = 1;
    for (size_t d = shape.size(); d-- > 0;) {
      strides[d] = elements;
      elements *= shape[d];
    }
    data = BlockPool::instance().take(static_cast<size_t>(elements) * dtype_bytes(dtype), &capacity);
  }
  PooledTensor(const PooledTensor&) = delete;
  PooledTensor& operator=(const PooledTensor&) = delete;
  ~PooledTensor() { BlockPool::instance().give_back(data, capacity); }

  std::vector<int64_t> shape;
  std::vector<int64_t> strides;
  void* data;
  size_t capacity;
  DLManagedTensor managed{};
};

void destroy(DLManagedTensor* managed) { delete static_cast<PooledTensor*>(managed->manager); }

// Runs when nobody has taken the capsule over; a taker renames it.
void destroy_capsule(PyObject* capsule) {
  if (PyCapsule_IsValid(capsule, "dltensor") == 0) return;
  destroy(static_cast<DLManagedTensor*>(PyCapsule_GetPointer(capsule, "dltensor")));
}

}  // namespace

pybind11::capsule pooled_tensor(std::vector<int64_t> shape, Dtype dtype) {
  auto owner = std::make_unique<PooledTensor>(std::move(shape), dtype);
  DLTensor& tensor = owner->managed.tensor;
  tensor.data = owner->data;
  tensor.device = {kCpu, 0};
  tensor.ndim = static_cast<int32_t>(owner->shape.size());
  tensor.dtype = {dtype == Dtype::kBFloat16 ? kBrainFloat : kFloat, static_cast<uint8_t>(8 * dtype_bytes(dtype)), 1};
  tensor.shape = owner->shape.data();
  tensor.strides = owner->strides.data();
  owner->managed.manager = owner.get();
  owner->managed.deleter = destroy;
  pybind11::capsule capsule(&owner->managed, "dltensor", destroy_capsule);
  owner.release();
  return capsule;
}

}  // namespace ruprompt
