// What pymdownx.arithmatex leaves of a formula: \( ... \) and \[ ... \] in elements of this class.
window.MathJax = {
  tex: { inlineMath: [["\\(", "\\)"]], displayMath: [["\\[", "\\]"]] },
  options: { ignoreHtmlClass: ".*", processHtmlClass: "arithmatex" },
};
