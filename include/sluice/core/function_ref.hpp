/// A reference to something callable: two pointers, no allocation, and one type whatever it refers to.
///
/// What it refers to has to live as long as the calls: for parameters, a lambda in the call itself.
#pragma once

#include <sluice/core/types.hpp>

#include <concepts>
#include <memory>
#include <type_traits>
#include <utility>

namespace sluice::inline SLUICE_ISA::detail {

template <typename Signature>
class function_ref;

template <typename Result, typename... Arguments>
class function_ref<Result(Arguments...)> {
public:
  template <typename F>
    requires(!std::same_as<std::remove_cvref_t<F>, function_ref> && std::is_invocable_r_v<Result, F&, Arguments...>)
  function_ref(F&& f)
      : object_(const_cast<void*>(static_cast<const void*>(std::addressof(f)))),
        call_(call<std::remove_reference_t<F>>) {}

  Result operator()(Arguments... arguments) const { return call_(object_, std::forward<Arguments>(arguments)...); }

private:
  // Not a lambda, whose conversion to a pointer would be three functions for each F.
  template <typename F>
  static Result call(void* object, Arguments... arguments) {
    return (*static_cast<F*>(object))(std::forward<Arguments>(arguments)...);
  }

  void* object_;
  Result (*call_)(void*, Arguments...);
};

}  // namespace sluice::inline SLUICE_ISA::detail
