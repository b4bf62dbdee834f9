// How Python's numbers become pointers: what all bindings share.
//
// The module has a part for each type of tensors, `float32` and `float64`, in which each function of a
// primitive begins with the same two arguments: on how many threads it runs, and a function of Python's that
// makes a tensor of so many elements for its intermediate results.
#pragma once

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <array>
#include <cstdint>
#include <vector>

namespace srnas_fast_python {

namespace py = pybind11;

using Address = std::uintptr_t;  // of a tensor's first element; 0 for a tensor that is not wanted
using Addresses = std::vector<Address>;
using Sizes = std::vector<int64_t>;

template <class T>
T* at(Address address) {
    return reinterpret_cast<T*>(address);
}

template <class T>
std::vector<T*> all_at(const Addresses& addresses) {
    std::vector<T*> pointers;
    for (const Address address : addresses) pointers.push_back(at<T>(address));
    return pointers;
}

// Of a tensor (N, C, H, W) with its strides, as the kernels have it.
template <class Tensor>
Tensor tensor_at(Address address, const Sizes& strides) {
    return {reinterpret_cast<decltype(Tensor::data)>(address), strides[0], strides[1], strides[2],
            strides[3]};
}

// Room for the intermediate results of one call.
template <class T>
class [[gnu::visibility("hidden")]] Scratch {
public:
    Scratch(const py::function& make, int64_t elements)
        : tensor_(make(elements)), data_(at<T>(tensor_.attr("data_ptr")().cast<Address>())) {}
    T* data() const { return data_; }

private:
    py::object tensor_;
    T* data_;
};

}  // namespace srnas_fast_python
